"""Early stopping: at the exact evaluation, also across a resume."""

import json
import math

import pytest

from train.core import stopping

# best: 3, 2, -, -, 1.5 (improves by 0.5), then nothing three times.
LOSSES = [3.0, 2.0, 2.5, 1.95, 1.5, 1.6, math.nan, 1.45, 0.1]


def stops_at(config, values, state=None):
  """The index of the evaluation after which the run is over."""
  state = state or stopping.start()
  for i, value in enumerate(values):
    state = stopping.advance(config, state, {"loss": value})
    if stopping.is_over(config, state):
      return i
  return None


def test_stops_at_the_exact_evaluation():
  assert stops_at(stopping.Config(patience=3, min_delta=0.1), LOSSES) == 7
  assert stops_at(stopping.Config(patience=2, min_delta=0.1), LOSSES) == 3
  assert stops_at(stopping.Config(patience=3), LOSSES) is None


def test_higher_can_be_better():
  config = stopping.Config(patience=2, min_delta=0.1, higher_is_better=True)
  assert stops_at(config, [-x for x in LOSSES]) == 3


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_resume_changes_nothing(cut):
  config = stopping.Config(patience=3, min_delta=0.1)
  state = stopping.start()
  for value in LOSSES[:cut]:
    state = stopping.advance(config, state, {"loss": value})
  restored = json.loads(json.dumps(state, allow_nan=False))
  assert restored == state
  assert cut + stops_at(config, LOSSES[cut:], restored) == 7


def test_an_improvement_is_larger_than_min_delta():
  config = stopping.Config(patience=1, min_delta=0.5)
  assert stops_at(config, [2.0, 1.5]) == 1
  assert stops_at(config, [2.0, 1.25]) is None


def test_nan_first_is_no_best():
  config = stopping.Config(patience=2)
  assert stops_at(config, [math.nan, math.inf]) == 1
  assert stops_at(config, [math.nan, 5.0, 6.0]) is None


def test_an_unknown_metric_is_named():
  config = stopping.Config(metric="accuracy")
  with pytest.raises(ValueError, match="'accuracy'.* loss"):
    stopping.advance(config, stopping.start(), {"loss": 1.0})


@pytest.mark.parametrize("fields", [{"patience": 0}, {"min_delta": -1.0}])
def test_impossible_values_are_named(fields):
  (name,) = fields
  with pytest.raises(ValueError, match=f"{name}="):
    stopping.Config(**fields)
