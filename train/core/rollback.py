"""Where a run went back, so that its later lives skip the same data.

A run that goes back to a checkpoint keeps its place in the data: what it read
since is not read again. A line of WORKDIR/rollbacks.jsonl says so, for a life
that begins at that checkpoint anew.
"""

import json
from typing import Any

import jax
from etils import epath

from models import durable

FILE = "rollbacks.jsonl"


def record(
  workdir: epath.Path, came: int, to: int, loop_state: dict[str, Any], why: str
) -> None:
  """Notes that the run came to a step, and went back to another."""
  if jax.process_index():
    return
  line = {"from": came, "to": to, "why": why, "loop": loop_state}
  path = workdir / FILE
  before = path.read_text() if path.exists() else ""
  durable.write_text(path, before + json.dumps(line) + "\n")


def kept(workdir: epath.Path, step: int) -> dict[str, Any] | None:
  """What the loop last took along to a step; None: it never went back there."""
  path = workdir / FILE
  found = None
  for line in path.read_text().splitlines() if path.exists() else []:
    entry = json.loads(line)
    found = entry["loop"] if entry["to"] == step else found
  return found
