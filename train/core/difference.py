"""Two checkpoints side by side: settings, tokenizers, leaves, numbers."""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from configs import fields
from data import tokenizer as tokenizers
from models import arrays


@dataclasses.dataclass(frozen=True)
class Leaf:
  """How far a leaf is from the one of the same name.

  Attributes:
    name: its part and path, params/layers/mlp/up.
    what: "equal" to the bit, "differs", "only in the first", "only in the
      second", or both shapes and types where they are others.
    absolute: largest difference of two numbers.
    relative: that over the largest number of the first.
  """

  name: str
  what: str
  absolute: float = 0.0
  relative: float = 0.0


def settings(a: epath.Path, b: epath.Path) -> dict[str, tuple[Any, Any]]:
  """Dotted keys whose values differ, with both; None: absent."""
  left, right = (
    dict(fields.leaves(json.loads((path / "config.json").read_text())))
    for path in (a, b)
  )
  return {
    key: (left.get(key), right.get(key))
    for key in sorted(left.keys() | right.keys())
    if left.get(key) != right.get(key)
  }


def fingerprints(a: epath.Path, b: epath.Path) -> tuple[str, str]:
  """Of both tokenizers."""
  return tokenizers.load(a).fingerprint, tokenizers.load(b).fingerprint


def leaves(a: epath.Path, b: epath.Path) -> Iterator[Leaf]:
  """Compares all arrays that either has, one pair in memory at a time."""
  for part in ("params", "state"):
    left, right = (
      arrays.describe(path / part) if (path / part).exists() else {}
      for path in (a, b)
    )
    for name in sorted(left.keys() | right.keys()):
      there, here = left.get(name), right.get(name)
      if there is None or here is None:
        which = "second" if there is None else "first"
        yield Leaf(f"{part}/{name}", f"only in the {which}")
      elif (there.shape, there.dtype) != (here.shape, here.dtype):
        both = (f"{x.dtype}{list(x.shape)}" for x in (there, here))
        yield Leaf(f"{part}/{name}", " and ".join(both))
      else:
        ((_, x),) = arrays.read(a / part, [name])
        ((_, y),) = arrays.read(b / part, [name])
        yield _measure(f"{part}/{name}", x, y)


def kinds(found: Iterable[Leaf]) -> dict[tuple[str, str], list[Leaf]]:
  """Puts leaves together that are called alike but for a number.

  Returns:
    (name with a star for each number, what) -> leaves.
  """
  groups: dict[tuple[str, str], list[Leaf]] = {}
  for leaf in found:
    name = re.sub(r"\d+", "*", leaf.name)
    groups.setdefault((name, leaf.what), []).append(leaf)
  return groups


def table(kinds: Mapping[tuple[str, str], list[Leaf]]) -> Iterator[str]:
  """A line for each kind of leaves that are not equal."""
  width = max((len(name) for name, _ in kinds), default=0)
  for (name, what), leaves in kinds.items():
    if what == "differs":
      far = max(leaf.absolute for leaf in leaves)
      share = max(leaf.relative for leaf in leaves)
      what = f"by {far:.1e} at most, {share:.1e} of the largest number"
    if what != "equal":
      count = f"  ({len(leaves)} leaves)" if len(leaves) > 1 else ""
      yield f"{name:<{width}}  {what}{count}"


def _measure(name: str, x: np.ndarray, y: np.ndarray) -> Leaf:
  if x.tobytes() == y.tobytes():
    return Leaf(name, "equal")
  x, y = x.astype(np.float64), y.astype(np.float64)
  # Where both are not finite in the same way, they do not differ.
  with np.errstate(invalid="ignore"):
    gap = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, abs(x - y))
  absolute, largest = float(gap.max()), float(abs(x).max())
  relative = absolute / largest if largest else float("inf")
  return Leaf(name, "differs", absolute, relative if absolute else 0.0)
