"""A small dose of benchmarks/faults/hang.py: T9."""

import pytest
from etils import epath

from benchmarks.faults import hang


@pytest.mark.slow
def test_a_hang_is_ended_and_the_run_goes_on(tmp_path):
  found = hang.hang(1, epath.Path(tmp_path))
  assert found["ended"] == found["named"] == found["identical"] == 1
