"""One tensor of theirs, and what it is of ours."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Row:
  """theirs[out, in] or theirs[in, out] is ours[in..., out...], reshaped.

  In the names {i} is the layer, {j} the layer of ours where the first ones lie
  in another stack, {e} the expert of a tensor that theirs has of each.
  """

  theirs: str
  ours: tuple[str, ...]
  n_in: int = 0  # leading dimensions of ours that are inputs; 0: a vector
  transposed: bool = False
  n_copies: int = 0  # dimensions ahead of those that list whole matrices
  # Leading outputs of the last of ours, as heads, in which all are laid together:
  # of others there may be a multiple of them, as queries of keys.
  n_common: int = 0
  n_ones: int = 0  # dimensions of size 1 behind the first of theirs


def linear(theirs: str, ours: str, n_in: int = 1) -> Row:
  """A torch Linear: [out, in] there."""
  return Row(f"{theirs}.weight", (ours,), n_in, transposed=True)


def expert_by_expert(
  rows: Sequence[Row], theirs: str, names: tuple[str, str, str], ours: str
) -> tuple[Row, ...]:
  """Rows in which experts are tensors of their own, instead of stacks.

  Args:
    rows: with the stacks.
    theirs: what stands before the number of the expert.
    names: what theirs call gate, up and down.
    ours: what stands before ours.
  """
  singly = [
    linear(f"{theirs}.{{e}}.{name}", f"{ours}/{own}")
    for name, own in zip(names, ("gate", "up", "down"), strict=True)
  ]
  taken = {name for row in singly for name in row.ours}
  return (*[row for row in rows if not taken & set(row.ours)], *singly)


def affine(theirs: str, ours: str, n_in: int = 0) -> tuple[Row, Row]:
  """A torch Linear with a bias; without inputs, a norm with one."""
  bias = Row(f"{theirs}.bias", (f"{ours}{'_' if n_in else '/'}bias",))
  if n_in:
    return linear(theirs, ours, n_in), bias
  return Row(f"{theirs}.weight", (f"{ours}/scale",)), bias


def fused(theirs: str, ours: str) -> tuple[Row, Row]:
  """Queries, keys and values in one matrix: those of a kv head lie together."""
  qkv = [ours + x for x in "qkv"]
  biases = tuple(f"{name}_bias" for name in qkv)
  return (
    Row(f"{theirs}.weight", tuple(qkv), 1, transposed=True, n_common=1),
    Row(f"{theirs}.bias", biases, n_common=1),
  )
