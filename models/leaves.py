"""What the logical names of a parameter's dims tell its optimizer.

A stacked weight ["layers", "embed", "heads", "head"] is many matrices, each
from "embed" to "heads" x "head". Optimizers that look at more than one entry at
a time (muon, adafactor, lamb) must see those matrices, not the array: then a
scanned model trains exactly as the unrolled one.
"""

import difflib
import fnmatch
from collections.abc import Container
from typing import Any

import jax
from flax import traverse_util

Names = tuple[str | None, ...]  # one logical name per dim
Dims = tuple[int, ...]
Axes = Any  # a tree like the parameters, of tuples of logical names

COPIES = frozenset(
  {"layers", "experts", "gates"}
)  # dims that list whole weights
ROWS = frozenset({"vocab", "position"})  # dims that an id picks from
UNTRAINED = frozenset({"balance"})  # dims that a load moves, and no gradient


def is_names(node: Any) -> bool:
  """Whether a node of a tree of names is a leaf."""
  return isinstance(node, tuple)


def map(function, axes: Any, *trees: Any) -> Any:
  """Maps (names, leaf, ...) over a tree of names and trees like it."""
  return jax.tree.map(function, axes, *trees, is_leaf=is_names)


def sides(names: Names) -> tuple[Dims, Dims]:
  """Splits the dims of one weight in inputs and outputs.

  "head" belongs to the dim before it. Of more than two sides, as in a
  convolution, the last is the output. A vector has no outputs.
  """
  groups: list[Dims] = []
  for dim in weight_dims(names):
    if names[dim] == "head" and groups and dim - 1 in groups[-1]:
      groups[-1] += (dim,)
    else:
      groups.append((dim,))
  if len(groups) < 2:
    return sum(groups, ()), ()
  return sum(groups[:-1], ()), groups[-1]


def weight_dims(names: Names) -> Dims:
  """The dims of one weight: all but those that list copies."""
  return tuple(i for i, name in enumerate(names) if name not in COPIES)


def is_matrix(names: Names) -> bool:
  """Whether it multiplies activations: no bias, no scale, no table of rows."""
  return bool(sides(names)[1]) and not ROWS.intersection(names)


def split(axes: Axes, tree: Any) -> tuple[Any, Any]:
  """The parts of a tree of dicts that gradients train, and that loads move."""
  names = traverse_util.flatten_dict(axes)
  flat = traverse_util.flatten_dict(tree)
  moved = {path for path in flat if UNTRAINED.intersection(names[path])}
  return tuple(
    traverse_util.unflatten_dict(
      {path: x for path, x in flat.items() if (path in moved) == is_moved}
    )
    for is_moved in (False, True)
  )


def part(tree: Any, chosen: Container[str]) -> tuple[Any, Any]:
  """The leaves of a tree of dicts under some paths, and the others."""
  flat = traverse_util.flatten_dict(tree)
  return tuple(
    traverse_util.unflatten_dict(
      {
        path: leaf
        for path, leaf in flat.items()
        if ("/".join(path) in chosen) == is_wanted
      }
    )
    for is_wanted in (True, False)
  )


def join(tree: Any, part: Any) -> Any:
  """A tree of dicts with the leaves that a part of it has in their place."""
  flat = traverse_util.flatten_dict(tree) | traverse_util.flatten_dict(part)
  return traverse_util.unflatten_dict(flat)


def like(part: Any, tree: Any) -> Any:
  """The leaves of a tree of dicts that a part of it has too."""
  flat = traverse_util.flatten_dict(tree)
  return traverse_util.unflatten_dict(
    {path: flat[path] for path in traverse_util.flatten_dict(part)}
  )


def paths(axes: Any) -> list[str]:
  """The path of every leaf, as in "layers/attention/q"."""
  flat = jax.tree.leaves_with_path(axes, is_leaf=is_names)
  return [jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in flat]


def decayed(axes: Any, no_decay: tuple[str, ...] | None) -> dict[str, bool]:
  """Path of every leaf -> whether weight decay shrinks it.

  Args:
    axes: tree of names.
    no_decay: patterns of paths that are left alone, "*" for any characters;
      None leaves alone whatever is no matrix: norms, biases and tables.

  Raises:
    ValueError: a pattern that matches nothing.
  """
  names = jax.tree.leaves(axes, is_leaf=is_names)
  if no_decay is None:
    return dict(zip(paths(axes), [is_matrix(n) for n in names], strict=True))
  left = matched(axes, no_decay, "optim.no_decay")
  return {path: path not in left for path in paths(axes)}


def matched(axes: Any, patterns: tuple[str, ...], key: str) -> set[str]:
  """The paths that any of some patterns matches, "*" for any characters.

  Args:
    axes: tree of names.
    patterns: one or more.
    key: where they stand in a config, for messages.

  Raises:
    ValueError: a pattern that matches nothing.
  """
  known, found = paths(axes), set()
  for pattern in patterns:
    hits = {path for path in known if fnmatch.fnmatchcase(path, pattern)}
    if not hits:
      near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.0)
      raise ValueError(
        f"{key}: {pattern!r} matches no parameter; the nearest are "
        f"{', '.join(near)}."
      )
    found |= hits
  return found
