"""card.json: how a checkpoint came to be."""

import os
import subprocess
import sys
import time
from typing import Any

import jax


def make(
  step: int,
  parent: str | None,
  parent_sha256: str | None,
  metrics: dict[str, float],
  **more: Any,
) -> dict[str, Any]:
  """What the process that runs now says of the checkpoint that it writes.

  Args:
    step: of the training.
    parent: the checkpoint that it began from.
    parent_sha256: of that one's manifest.
    metrics: what it was measured at.
    **more: what only some have, plain JSON.
  """
  return {
    "step": step,
    "parent": parent,
    "parent_sha256": parent_sha256,
    "command": " ".join(sys.orig_argv),
    "git": revision(),
    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    "jax": jax.__version__,
    "metrics": metrics,
    **more,
  }


def revision() -> str | None:
  """The commit of the code that runs, with a + where it was changed since."""
  root = os.path.dirname(os.path.abspath(__file__))
  ask = ["git", "-C", root, "describe", "--always", "--dirty=+", "--abbrev=12"]
  try:
    done = subprocess.run(ask, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() or None
