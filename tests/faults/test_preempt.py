"""A small dose of benchmarks/faults/preempt.py (C7, C13, T14)."""

import signal

import pytest
from etils import epath

from benchmarks.faults import preempt, runs


@pytest.mark.slow
def test_a_run_that_is_asked_saves_and_goes_on(tmp_path):
  found = preempt.preempt(2, epath.Path(tmp_path), n_steps=60)
  assert found["signals"] == 2 and found["runs"] >= 1
  assert found["exits_75"] == found["taken"]
  assert found["lost_steps"] <= 1
  assert found["identical"] == found["runs"]


def test_a_second_job_is_refused_while_the_first_goes_on(tmp_path):
  folder = epath.Path(tmp_path)
  config = runs.page(folder, train={"steps": 100_000, "log_every_steps": 1})
  first = runs.start(config, folder / "run")
  assert first.wait_for(lambda: "tok/s" in first.said), first.said
  second = runs.start(config, folder / "run")
  assert second.wait() == 2
  assert f"in use: process {first.process.pid} on " in second.said
  assert len(second.said.splitlines()) <= 5
  first.signal(signal.SIGTERM)
  assert first.wait() == 75
