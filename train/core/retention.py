"""Which checkpoints stay: the newest, every so many steps, the best."""

import dataclasses
import math
from collections.abc import Mapping

from configs import fields
from configs.ranges import Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
  """By what a checkpoint is better than another."""

  metric: str = "heldout_loss"  # of an evaluator, as in metrics.jsonl
  higher_is_better: bool = False
  n: Count = 1  # how many stay

  def __post_init__(self):
    fields.check(self)


def kept(
  saved: Mapping[int, Mapping[str, float]],
  last: int,
  every: int,
  best: Best | None,
) -> set[int]:
  """Picks the steps that stay among whole checkpoints.

  Args:
    saved: step -> metrics.
    last: so many of the newest.
    every: those at its multiples; 0: none.
    best: those, where they are measured; of equal ones the oldest, for that is
      when it was measured.
  """
  stay = set(sorted(saved)[-last:])
  if every:
    stay |= {step for step in saved if step % every == 0}
  if best:
    sign = -1 if best.higher_is_better else 1
    values = {
      step: metrics.get(best.metric, math.nan)
      for step, metrics in saved.items()
    }
    measured = [step for step in values if math.isfinite(values[step])]
    measured.sort(key=lambda step: (sign * values[step], step))
    stay |= set(measured[: best.n])
  return stay
