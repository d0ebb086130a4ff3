"""Our parameter tree and the names that `transformers` gives the same numbers.

A piece is one tensor of theirs and the leaves of ours that it holds, so that a
model of any size is converted tensor after tensor.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from convert import catalogue
from convert.names.row import Row
from models import arrays, families
from models.layers import stack


@dataclasses.dataclass(frozen=True)
class Part:
  """A leaf of ours without scanning, or one of the matrices that it lists."""

  name: str
  shape: tuple[int, ...]
  copy: int | None = None  # of a leaf that lists experts, which of them


@dataclasses.dataclass(frozen=True)
class Piece:
  """One tensor of theirs."""

  theirs: str
  parts: tuple[Part, ...]
  row: Row

  @property
  def shape(self) -> tuple[int, ...]:
    """What theirs has."""
    r, shapes = self.row, [part.shape for part in self.parts]
    if not r.n_in:
      return (sum(map(math.prod, shapes)),)
    inner = r.n_copies + r.n_in
    matrix = (
      math.prod(shapes[0][r.n_copies : inner]),
      sum(math.prod(shape[inner:]) for shape in shapes),
    )
    matrix = matrix[::-1] if r.transposed else matrix
    ones = (1,) * r.n_ones
    return (*shapes[0][: r.n_copies], matrix[0], *ones, matrix[1])

  def join(self, ours: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor of theirs, from the parts."""
    r = self.row
    parts = [_two_dims(x, r, self._common) for x in ours]
    joined = np.concatenate(parts, axis=-1)
    joined = joined.reshape(*joined.shape[: joined.ndim - r.n_common - 1], -1)
    joined = joined.swapaxes(-1, -2) if r.transposed else joined
    return joined.reshape(self.shape)

  def split(self, theirs: np.ndarray) -> list[np.ndarray]:
    """The parts, from the tensor of theirs."""
    r = self.row
    if r.n_ones:
      theirs = theirs.reshape(*theirs.shape[: -r.n_ones - 1], -1)
    joined = theirs.swapaxes(-1, -2) if r.transposed else theirs
    n_ahead, n_common = r.n_copies + r.n_in, math.prod(self._common)
    joined = joined.reshape(*joined.shape[:-1], *self._common, -1)
    sizes = [math.prod(p.shape[n_ahead:]) // n_common for p in self.parts]
    split = np.split(joined, np.cumsum(sizes)[:-1], axis=-1)
    return [
      x.reshape(part.shape) for x, part in zip(split, self.parts, strict=True)
    ]

  @property
  def _common(self) -> tuple[int, ...]:
    n_ahead = self.row.n_copies + self.row.n_in
    return self.parts[-1].shape[n_ahead : n_ahead + self.row.n_common]


def pieces(config: families.Config, rows: Iterable[Row]) -> list[Piece]:
  """The tensors of theirs that a config has, row by row, layer by layer."""
  shapes = {name: leaf.shape for name, leaf in _leaves(config).items()}
  n_first = getattr(config, "n_dense", 0)  # layers in a stack of their own
  found = [re.search(r"layer_(\d+)/", name) for name in shapes]
  n_layers = n_first + 1 + max(int(match[1]) for match in found if match)
  made = {}
  for row, i in itertools.product(rows, range(n_layers)):
    names = [name.format(i=i, j=i - n_first) for name in row.ours]
    if names[0] not in shapes:
      continue
    is_listed = "{e}" in row.theirs
    for e in range(shapes[names[0]][0] if is_listed else 1):
      parts = tuple(
        Part(name, shapes[name][1:], e)
        if is_listed
        else Part(name, shapes[name])
        for name in names
      )
      theirs = row.theirs.format(i=i, e=e)
      made.setdefault(theirs, Piece(theirs, parts, row))
  return list(made.values())


def missing(config: families.Config, have: Iterable[Piece]) -> list[Part]:
  """The leaves of ours, or those of the matrices in them, that pieces lack."""
  had: dict[str, set[int | None]] = {}
  for piece in have:
    for part in piece.parts:
      had.setdefault(part.name, set()).add(part.copy)
  lacking = []
  for name, leaf in _leaves(config).items():
    copies = had.get(name, set())
    if not copies:
      lacking.append(Part(name, leaf.shape))
    elif None not in copies:
      rest = sorted(set(range(leaf.shape[0])) - copies)
      lacking += [Part(name, leaf.shape[1:], e) for e in rest]
  return lacking


class Places:
  """Where the leaves of the unscanned tree lie in that of a config."""

  def __init__(self, config: families.Config):
    self._blocks: dict[str, int] = {}
    self._names = {*arrays.by_path(families.abstract(config))}
    for name in self._names:
      if found := re.match(r"(.*)/layers/block_(\d+)/", name):
        n_blocks = max(int(found[2]) + 1, self._blocks.get(found[1], 0))
        self._blocks[found[1]] = n_blocks

  def of(self, part: Part) -> tuple[str, tuple[int, ...]]:
    """The leaf of the tree, and the first indices of the part in it."""
    copy = () if part.copy is None else (part.copy,)
    found = re.match(r"(.*)/layer_(\d+)/(.*)", part.name)
    # Layers of a repetition that is cut short stand alone, scanned or not.
    is_alone = part.name in self._names
    if is_alone or not found or found[1] not in self._blocks:
      return part.name, copy
    i, j = divmod(int(found[2]), self._blocks[found[1]])
    return f"{found[1]}/layers/block_{j}/{found[3]}", (i, *copy)


def to_theirs(
  config: families.Config, params: families.Params
) -> dict[str, np.ndarray]:
  """Our scanned parameters -> their state dict (a tied head is left out)."""
  ours = arrays.by_path(
    {
      name: stack.unstack(part) if "layers" in part else part
      for name, part in params.items()
    }
  )
  return {
    piece.theirs: piece.join(
      [np.asarray(ours[part.name]) for part in piece.parts]
    )
    for piece in _all(config)
  }


def from_theirs(
  config: families.Config, theirs: Mapping[str, np.ndarray]
) -> families.Params:
  """Their state dict -> our scanned parameters; also for gradients."""
  ours = {}
  for piece in _all(config):
    parts = piece.split(np.asarray(theirs[piece.theirs]))
    ours |= {p.name: x for p, x in zip(piece.parts, parts, strict=True)}
  shapes = families.abstract(dataclasses.replace(config, scanned=False))
  params = jax.tree.unflatten(
    jax.tree.structure(shapes), [ours[name] for name in arrays.by_path(shapes)]
  )
  return {
    name: stack.stack(part, len(config.pattern)) if "layer_0" in part else part
    for name, part in params.items()
  }


def _all(config: families.Config) -> list[Piece]:
  found = pieces(config, catalogue.rows(config))
  assert not missing(config, found), f"no row for {missing(config, found)}"
  return found


def _leaves(config: families.Config) -> dict[str, jax.ShapeDtypeStruct]:
  unscanned = dataclasses.replace(config, scanned=False)
  return arrays.by_path(families.abstract(unscanned))


def _two_dims(x: Any, row: Row, common: tuple[int, ...]) -> np.ndarray:
  copies, rest = x.shape[: row.n_copies], x.shape[row.n_copies :]
  inputs = (math.prod(rest[: row.n_in]),) if row.n_in else ()
  return x.reshape(*copies, *inputs, *common, -1)
