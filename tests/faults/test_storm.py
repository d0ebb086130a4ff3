"""A small dose of benchmarks/faults/storm.py, without its figure."""

import pytest
from etils import epath

from benchmarks.faults import storm


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path):
  found = storm.storm(2, epath.Path(tmp_path), size={})
  assert found["kills"] == 2 and found["identical"]
  # Which is larger is a matter of what else the machine does.
  assert 0 < found["goodput"] < 1 and 0 < found["ideal"] < 1
