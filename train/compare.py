"""Compares: two checkpoints on the same items, by a judge, by preferences.

    python -m train.compare runs runs/first/evaluation runs/second/evaluation

takes two --out folders of `train.evaluate --task=...` and tells, for every
task and metric that both have, the difference on the same items: its paired
bootstrap interval and p, and McNemar's exact p where an item is right or wrong.
"""

import sys
from collections.abc import Callable

import numpy as np
from etils import epath

from configs import door
from train.evaluators import exam, metrics, uncertainty

_ROW = "{:<24}  {:<18}  {:>9}  {:>9}  {:>10}  {:>21}  {:>8}  {:>8}"
Row = tuple  # title, metric, first, second, difference, low, high, p, McNemar


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


def show(first: epath.Path, second: epath.Path) -> int:
  """Prints the rows."""
  print(
    _ROW.format(
      "task",
      "metric",
      "first",
      "second",
      "difference",
      "95 % interval",
      "p",
      "McNemar",
    )
  )
  for title, name, a, b, value, low, high, p, exact in rows(first, second):
    print(
      _ROW.format(
        title,
        name,
        f"{a:.4f}",
        f"{b:.4f}",
        f"{value:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{p:.4f}",
        "" if exact is None else f"{exact:.4f}",
      )
    )
  return 0


VERBS: dict[str, tuple[Callable[..., int], int]] = {"runs": (show, 2)}


def main(arguments: list[str]) -> int:
  """Does what the first argument says with the others."""
  if {"-h", "--help"} & set(arguments):
    print(__doc__)
    return 0
  verb, *words = arguments or [""]
  act, n_words = VERBS.get(verb, (None, 0))
  if act is None or len(words) != n_words:
    raise ValueError(
      f"expected `runs FIRST SECOND`, got {arguments}; --help says more."
    )
  return act(*map(epath.Path, words))


if __name__ == "__main__":
  with door.plain_mistakes():
    sys.exit(main(sys.argv[1:]))
