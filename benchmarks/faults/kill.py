"""Kills runs (-9) at random moments: is every checkpoint whole, is none lost?

    python -m benchmarks.faults.kill --n 500

Runs that save after every second step are killed up to ten times each, and then
left to end: a fifth of the times while they start, restore and compile, else at
any moment of training, writing, digesting, sealing and deleting. After each kill
every folder with a manifest is read against it, and the next life has to go on
from the newest.

The last line is JSON: kills, runs, corrupted (checkpoints that do not verify, or
that a life could not restore), lost (checkpoints that were whole and from which
the next life did not go on), identical (runs that ended at the bits of one that
nobody killed), in_save (kills that left a save cut short).
"""

import random
import re
import signal
import sys
import time

from etils import epath

from benchmarks.faults import dose, runs
from models import checkpoint, manifest

KILLS_A_RUN = 10
MOST_SECONDS = 1.5  # before the kill, of training or of the start


def kill(
  n_kills: int, folder: epath.Path, n_steps: int = 120
) -> dict[str, int]:
  """Kills runs of n_steps so many times in all; returns the figures."""
  config = runs.page(
    folder,
    train={"steps": n_steps, "log_every_steps": 1},
    checkpoint={"every_steps": 2},
  )
  calm, rng = folder / "calm", random.Random(0)
  assert runs.start(config, calm).wait() == 0
  expected = runs.digest(calm)
  found = dict(kills=0, runs=0, corrupted=0, lost=0, identical=0, in_save=0)
  while found["kills"] < n_kills:
    workdir = folder / f"run{found['runs']}"
    n_left = min(KILLS_A_RUN, n_kills - found["kills"])
    committed: list[int] = []
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
      life = runs.start(config, workdir)
      if n_left:
        _strike(life, rng)
      code = life.wait()
      _judge(life, committed, found)
      committed = _examine(workdir, found)
      found["kills"] += code == -signal.SIGKILL
      n_left -= 1 if n_left else 0
    found["runs"] += 1
    found["identical"] += code == 0 and runs.digest(workdir) == expected
    workdir.rmtree()
  return found


def _strike(life: runs.Life, rng: random.Random) -> None:
  """Lets a life go on for a while, and ends it."""
  if rng.random() > 0.2:
    life.wait_for(lambda: "tok/s" in life.said)  # the first step's line
  until = time.monotonic() + rng.uniform(0, MOST_SECONDS)
  life.wait_for(lambda: time.monotonic() > until)
  life.kill()


def _judge(life: runs.Life, committed: list[int], found: dict) -> None:
  """Counts what a life made of the checkpoints that it came upon."""
  said = life.said
  if "passing over" in said or life.wait() not in (0, -signal.SIGKILL):
    found["corrupted"] += 1
    print(said, file=sys.stderr)
  resumed = re.search(r"resuming from \S+/(\d+):", said)
  if committed and resumed:
    found["lost"] += int(resumed[1]) < max(committed)
  elif committed and "compiled in" in said:
    found["lost"] += 1


def _examine(workdir: epath.Path, found: dict) -> list[int]:
  """Reads every checkpoint against its manifest; the steps that are whole."""
  folder, whole = workdir / "checkpoints", []
  for step in checkpoint.steps(workdir):
    problem = manifest.verify(folder / str(step))
    if problem:
      found["corrupted"] += 1
      print(f"{folder / str(step)}: {problem}", file=sys.stderr)
    else:
      whole.append(step)
  names = [p.name for p in folder.iterdir()] if folder.exists() else []
  found["in_save"] += len(names) > len(whole)
  return whole


if __name__ == "__main__":
  dose.run(
    kill,
    n=500,
    is_kept=lambda found: (
      found["corrupted"] == found["lost"] == 0
      and found["identical"] == found["runs"]
    ),
  )
