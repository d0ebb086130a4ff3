"""Our parameter tree and the names that `transformers` gives the same numbers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from convert import catalogue
from convert.names.row import Row
from models import families
from models.layers import stack


def to_theirs(
  config: families.Config, params: families.Params
) -> dict[str, np.ndarray]:
  """Our scanned parameters -> their state dict (a tied head is left out)."""
  ours = _flat(
    {
      name: stack.unstack(part) if "layers" in part else part
      for name, part in params.items()
    }
  )
  theirs = {}
  for row in _rows(config, ours):
    parts = [_two_dims(ours[name], row) for name in row.ours]
    joined = np.concatenate(parts, axis=-1)
    joined = joined.reshape(*joined.shape[: joined.ndim - row.n_common - 1], -1)
    theirs[row.theirs] = joined.swapaxes(-1, -2) if row.transposed else joined
  return theirs


def from_theirs(
  config: families.Config, theirs: Mapping[str, np.ndarray]
) -> families.Params:
  """Their state dict -> our scanned parameters; also for gradients."""
  unscanned = dataclasses.replace(config, scanned=False)
  shapes = families.abstract(unscanned)
  leaves = {name: leaf.shape for name, leaf in _flat(shapes).items()}
  ours = {}
  for row in _rows(config, leaves):
    joined = np.asarray(theirs[row.theirs])
    joined = joined.swapaxes(-1, -2) if row.transposed else joined
    n_ahead = row.n_copies + row.n_in
    common = leaves[row.ours[0]][n_ahead : n_ahead + row.n_common]
    joined = joined.reshape(*joined.shape[:-1], *common, -1)
    n_ahead += row.n_common
    sizes = [math.prod(leaves[name][n_ahead:]) for name in row.ours]
    parts = np.split(joined, np.cumsum(sizes)[:-1], axis=-1)
    for name, part in zip(row.ours, parts, strict=True):
      ours[name] = part.reshape(leaves[name])
  params = jax.tree_util.tree_map_with_path(
    lambda path, _: ours[_name(path)], shapes
  )
  return {
    name: stack.stack(part, len(config.pattern)) if "layer_0" in part else part
    for name, part in params.items()
  }


def _rows(config: families.Config, ours: Mapping[str, Any]) -> list[Row]:
  """The rows that this config has, one for every layer."""

  n_first = getattr(config, "n_dense", 0)  # layers in a stack of their own

  def of_layer(row, i):
    names = tuple(name.format(i=i, j=i - n_first) for name in row.ours)
    return dataclasses.replace(row, theirs=row.theirs.format(i=i), ours=names)

  rows = {
    of_layer(row, i)
    for row in catalogue.of(config).ROWS
    for i in range(config.n_layers)
  }
  used = [row for row in rows if row.ours[0] in ours]
  missing = set(ours) - {name for row in used for name in row.ours}
  assert not missing, f"no row for {sorted(missing)}"
  return used


def _two_dims(x: Any, row: Row) -> np.ndarray:
  x = np.asarray(x)
  if not row.n_in:
    return x.reshape(-1)
  copies, rest = x.shape[: row.n_copies], x.shape[row.n_copies :]
  common = rest[row.n_in : row.n_in + row.n_common]
  return x.reshape(*copies, math.prod(rest[: row.n_in]), *common, -1)


def _flat(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
