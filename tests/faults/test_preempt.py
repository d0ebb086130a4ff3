"""A small dose of benchmarks/faults/preempt.py (C7, T14)."""

from etils import epath

from benchmarks.faults import preempt


def test_a_run_that_is_asked_saves_and_goes_on(tmp_path):
  found = preempt.preempt(2, epath.Path(tmp_path), n_steps=60)
  assert found["signals"] == 2 and found["runs"] >= 1
  assert found["exits_75"] == found["taken"]
  assert found["lost_steps"] <= 1
  assert found["identical"] == found["runs"]
