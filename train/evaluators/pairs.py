"""Two checkpoints on the same items: how far apart, and is it chance?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from train.evaluators import exam, metrics, uncertainty

_LINE = "{:<24}  {:<18}  {:>9}  {:>9}  {:>10}  {:>21}  {:>8}  {:>8}"
_HEAD = (
  *("task", "metric", "first", "second"),
  *("difference", "95 % interval", "p", "McNemar"),
)
# Title, metric, first, second, difference, low, high, p, McNemar's p or None.
Row = tuple[Any, ...]


def rows(first: epath.Path, second: epath.Path) -> list[Row]:
  """A row for every metric of every task that both have.

  Raises:
    ValueError: they have no task in common, or one with other items.
  """
  left, right = exam.read(first), exam.read(second)
  common = [title for title in left if title in right]
  if not common:
    raise ValueError(
      f"{first} has {', '.join(left)} and {second} {', '.join(right)}: nothing "
      "to compare."
    )
  found = []
  for title in common:
    (a, of_a), (b, of_b) = left[title], right[title]
    if a["task_digest"] != b["task_digest"]:
      raise ValueError(
        f"{title} of {first} and of {second} are not the same items, prompts "
        "or settings: measure one of them again."
      )
    for name in a["metrics"]:
      if name in ("bleu", "chrf"):  # sacrebleu compares systems itself
        continue
      found.append((title, name, *_compared(name, of_a, of_b)))
  return found


def _compared(name, of_a, of_b) -> tuple:
  sides = [metrics.over(name, records) for records in (of_a, of_b)]
  everything = np.arange(len(of_a))
  found = uncertainty.paired(*sides, len(of_a))
  p_mcnemar = None
  if name in of_a[0]["scores"]:
    scores = [
      np.array([r["scores"][name] for r in records]) for records in (of_a, of_b)
    ]
    if {0.0, 1.0} >= {*np.concatenate(scores).tolist()}:
      p_mcnemar = uncertainty.mcnemar(*scores)
  values = [side(everything) for side in sides]
  return (*values, found.value, found.low, found.high, found.p, p_mcnemar)


def text(found: Sequence[Row]) -> str:
  """The table of rows for a terminal."""
  lines = [_LINE.format(*_HEAD)]
  for title, name, a, b, value, low, high, p, exact in found:
    told = [f"{a:.4f}", f"{b:.4f}", f"{value:+.4f}"]
    told += [f"{low:+.4f} to {high:+.4f}", f"{p:.4f}"]
    told.append("" if exact is None else f"{exact:.4f}")
    lines.append(_LINE.format(title, name, *told))
  return "\n".join(lines)


def written(
  first: epath.Path, second: epath.Path
) -> list[tuple[str, str, str]]:
  """Prompts of all tasks that both have, and what the one and the other wrote.

  Raises:
    ValueError: neither wrote anything that the other did, too.
  """
  left, right = exam.read(first), exam.read(second)
  found = [
    (a["prompt"], a["texts"][0], b["texts"][0])
    for title in left
    if title in right
    for a, b in zip(left[title][1], right[title][1], strict=True)
    if "texts" in a
  ]
  if not found:
    raise ValueError(
      f"{first} and {second} have no written answers to the same task: measure "
      "one such as configs/tasks/gsm8k.py."
    )
  return found


def told(first: epath.Path, second: epath.Path, n: str) -> str:
  """What both wrote about the first n items, for a terminal.

  Raises:
    ValueError: as `written`; n is no number of items.
  """
  if not n.isdigit() or n == "0":
    raise ValueError(f"texts: {n!r} is no number of items: give 1 or more.")
  names = ("asked", str(first), str(second))
  return "".join(
    f"--- {name}\n{text.strip()}\n"
    for texts in written(first, second)[: int(n)]
    for name, text in zip(names, texts, strict=True)
  )
