"""Early stopping: pure functions of a state that is plain JSON."""

import dataclasses
import math
from collections.abc import Mapping

from configs import fields
from configs.ranges import Count, NonNegative

State = dict[str, float | int | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """When a run has stopped getting better."""

  metric: str = "loss"  # of the evaluators
  higher_is_better: bool = False
  patience: Count = 3  # evaluations in a row without improvement
  min_delta: NonNegative = 0.0  # an improvement is larger than this

  def __post_init__(self):
    fields.check(self)


def start() -> State:
  """The state before the first evaluation."""
  return {"best": None, "n_worse": 0}


def advance(
  config: Config, state: State, metrics: Mapping[str, float]
) -> State:
  """The state after an evaluation; NaN and infinity improve nothing.

  Raises:
    ValueError: the evaluators report no such metric.
  """
  if config.metric not in metrics:
    raise ValueError(
      f"stopping.metric={config.metric!r} is reported by no evaluator: choose "
      f"one of {', '.join(sorted(metrics)) or 'none, and add an evaluator'}."
    )
  value, best = float(metrics[config.metric]), state["best"]
  if math.isfinite(value) and (best is None or _improves(config, value, best)):
    return {"best": value, "n_worse": 0}
  return {"best": best, "n_worse": state["n_worse"] + 1}


def is_over(config: Config, state: State) -> bool:
  """Whether to stop now."""
  return state["n_worse"] >= config.patience


def _improves(config: Config, value: float, best: float) -> bool:
  gain = value - best if config.higher_is_better else best - value
  return gain > config.min_delta
