"""A small dose of benchmarks/faults/disk.py (C2), where mounting is allowed."""

import json
import subprocess
import sys

import pytest

MAY_MOUNT = subprocess.run(
  [
    "unshare",
    "--mount",
    "--map-root-user",
    "mount",
    "-t",
    "tmpfs",
    "x",
    "/mnt",
  ],
  capture_output=True,
)


@pytest.mark.skipif(
  MAY_MOUNT.returncode != 0, reason="no mount namespaces on this machine"
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
