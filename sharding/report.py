"""What lies where: a table of every leaf, and the check that nothing is lost.

An array that is replicated although the rules could split it costs each device
its full size, silently; here it is an error.
"""

import math
from typing import Any

import jax
import numpy as np

LIMIT_BYTES = 1 << 20  # replicas smaller than this are nobody's problem


def rows(tree: Any) -> list[tuple[str, tuple[int, ...], str, str, int]]:
  """(path, shape, dtype, spec, bytes per device) of every leaf."""
  return [
    (
      jax.tree_util.keystr(path, simple=True, separator="/"),
      leaf.shape,
      leaf.dtype.name,
      str(tuple(getattr(leaf.sharding, "spec", ()))),
      bytes_per_device(leaf),
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def table(tree: Any) -> str:
  """The rows as aligned text, the total last."""
  lines = [("leaf", "shape", "dtype", "sharding", "bytes/device")]
  listed = rows(tree)
  lines += [(p, str(s), d, spec, f"{n:,}") for p, s, d, spec, n in listed]
  lines.append(("total", "", "", "", f"{sum(row[-1] for row in listed):,}"))
  widths = [max(len(line[i]) for line in lines) for i in range(5)]
  return "\n".join(
    "  ".join(
      cell.rjust(w) if i == 4 else cell.ljust(w)
      for i, (cell, w) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )


def bytes_per_device(leaf: Any) -> int:
  """Bytes that one device holds of an array or of its ShapeDtypeStruct."""
  shape = leaf.sharding.shard_shape(leaf.shape)
  return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize


def check(tree: Any, declared: Any, limit_bytes: int = LIMIT_BYTES) -> None:
  """Asserts that no device holds more of a large leaf than its rules say.

  Args:
    tree: arrays, as they came out of init, restore or a step.
    declared: the tree of shardings that the rules give for them.
    limit_bytes: what counts as large.

  Raises:
    ValueError: names each leaf that is replicated, or split less than the
      rules split it, with its size.
  """
  lost = [
    f"{jax.tree_util.keystr(path)} {leaf.shape} ({leaf.nbytes:,} bytes, "
    f"{bytes_per_device(leaf):,} on each device)"
    for (path, leaf), wanted in zip(
      jax.tree_util.tree_leaves_with_path(tree),
      jax.tree.leaves(declared),
      strict=True,
    )
    if leaf.nbytes >= limit_bytes
    and leaf.sharding.num_devices > 1
    and math.prod(leaf.sharding.shard_shape(leaf.shape))
    > math.prod(wanted.shard_shape(leaf.shape))
  ]
  if lost:
    raise ValueError(
      "replicated although the rules split it: " + "; ".join(lost[:4])
    )
