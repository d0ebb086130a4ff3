"""A small dose of benchmarks/faults/kill.py (C1, C6)."""

import pytest
from etils import epath

from benchmarks.faults import kill


@pytest.mark.slow
def test_nothing_is_lost_by_kills(tmp_path):
  found = kill.kill(2, epath.Path(tmp_path), n_steps=16)
  assert found["kills"] == 2 and found["runs"] >= 1
  assert found["corrupted"] == found["lost"] == 0
  assert found["identical"] == found["runs"]
