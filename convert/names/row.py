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
  n_common: int = (
    0  # leading outputs, as heads, in which ours are laid together
  )


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
