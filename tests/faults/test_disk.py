"""A small dose of benchmarks/faults/disk.py (C2)."""

import json
import subprocess
import sys

import pytest

from benchmarks.faults import disk


# A disk of its own takes a mount, which containers may forbid and other systems
# than Linux do not have. There, C2 is held by tests/train/test_checkpointing.py:
# a real EFBIG, and ENOSPC, EIO and EROFS put in at every stage of a save.
@pytest.mark.skipif(
  not disk.may_mount(), reason="no disk can be mounted here: see above"
)
@pytest.mark.slow
def test_full_and_frozen_disks_are_survived():
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.faults.disk", "--n", "3"],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["survived"] == found["identical"] == found["cases"] == 3
  assert found["hit"] == 3 and found["torn"] == 0
