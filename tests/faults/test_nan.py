"""A small dose of benchmarks/faults/nan.py: T1."""

import pytest
from etils import epath

from benchmarks.faults import nan


@pytest.mark.slow
def test_what_is_poisoned_is_caught_named_and_kept_out(tmp_path):
  found = nan.poison(10, epath.Path(tmp_path))
  assert found["caught"] == found["named"] == found["injections"] == 10
  assert found["applied"] == found["false_alarms"] == 0
  assert found["last_loss"] < 1 < 5 < found["first_loss"]
