"""Which checkpoints stay (C12): by hand, and never none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.core import retention

LOSSES = {10: 5.0, 20: 3.0, 30: 3.0, 40: math.nan, 50: 4.0, 60: 6.0}
SAVED = {step: {"heldout_loss": loss} for step, loss in LOSSES.items()}


@pytest.mark.parametrize(
  "last, every, best, stay",
  [
    (2, 0, None, {50, 60}),
    (1, 20, None, {20, 40, 60}),
    (1, 0, retention.Best(), {20, 60}),  # of equals the one that was measured
    (1, 0, retention.Best(n=2), {20, 30, 60}),
    (1, 0, retention.Best(n=9), {10, 20, 30, 50, 60}),  # NaN is no good
    (1, 0, retention.Best(higher_is_better=True), {60}),
    (1, 0, retention.Best(metric="accuracy"), {60}),  # not measured
    (9, 0, None, set(SAVED)),
  ],
)
def test_by_hand(last, every, best, stay):
  assert retention.kept(SAVED, last, every, best) == stay


@given(
  st.dictionaries(st.integers(1, 99), st.floats(), min_size=1),
  st.integers(1, 5),
  st.integers(0, 9),
  st.integers(1, 3),
)
def test_the_newest_and_the_best_stay(losses, last, every, n):
  saved = {step: {"loss": loss} for step, loss in losses.items()}
  best = retention.Best(metric="loss", n=n)
  stay = retention.kept(saved, last, every, best)
  assert stay <= saved.keys() and max(saved) in stay
  finite = [loss for loss in losses.values() if math.isfinite(loss)]
  if finite:
    assert min(finite) in {losses[step] for step in stay}
