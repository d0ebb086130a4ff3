"""Asks runs to stop, at random moments: what is lost, and do they go on?

    python -m benchmarks.faults.preempt --n 100

SIGTERM, SIGINT and SIGUSR1 in turn, to runs that save only when they stop: a
fifth of the times while they start, else while they train. A life that was asked
has to exit with 75, and the next one to go on from its last step. A signal that
comes before the run listens, or when it is done, ends it as it ends anything.

The last line is JSON: signals, taken (that a run heard), exits_75 (of those),
lost_steps (the most that a life made and did not save), runs, identical (runs
that ended at the bits of one that nobody asked).
"""

import random
import re
import signal
import time
from typing import Any

from etils import epath

from benchmarks.faults import dose, runs
from models import checkpoint

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SIGNALS_A_RUN = 10
MOST_SECONDS = 0.5  # of training before the signal
DONE = 0


def preempt(
  n_signals: int, folder: epath.Path, n_steps: int = 240
) -> dict[str, Any]:
  """Sends so many signals in all; returns the figures."""
  config = runs.page(
    folder,
    train={"steps": n_steps, "log_every_steps": 1},
    checkpoint={"every_steps": 0},
  )
  calm, rng = folder / "calm", random.Random(0)
  assert runs.start(config, calm).wait() == DONE
  expected = runs.digest(calm)
  found = dict(
    signals=0, taken=0, exits_75=0, lost_steps=0, runs=0, identical=0
  )
  while found["signals"] < n_signals:
    workdir = folder / f"run{found['runs']}"
    n_left = min(SIGNALS_A_RUN, n_signals - found["signals"])
    code = None
    while code != DONE:
      life = runs.start(config, workdir)
      if n_left:
        n_left -= 1
        found["signals"] += 1
        _ask(life, NUMBERS[found["signals"] % len(NUMBERS)], rng)
      code = life.wait()
      if "saving behind this step" in life.said:
        found["taken"] += 1
        found["exits_75"] += code == 75 or "100%" in life.said
      made = max(
        map(int, re.findall(rf"(\d+)/{n_steps} ", life.said)), default=0
      )
      if made:
        saved = checkpoint.steps(workdir)
        found["lost_steps"] = max(
          found["lost_steps"], made - (saved or [0])[-1]
        )
      elif code not in (DONE, 75, 130) and -code not in NUMBERS:
        raise RuntimeError(f"a life ended with {code}:\n{life.said}")
    found["runs"] += 1
    found["identical"] += runs.digest(workdir) == expected
    workdir.rmtree()
  return found


def _ask(life: runs.Life, number: int, rng: random.Random) -> None:
  if rng.random() > 0.2:
    life.wait_for(lambda: "tok/s" in life.said)  # the first step's line
    until = time.monotonic() + rng.uniform(0, MOST_SECONDS)
  else:
    until = time.monotonic() + rng.uniform(0, 2)
  life.wait_for(lambda: time.monotonic() > until)
  life.signal(number)


if __name__ == "__main__":
  dose.run(
    preempt,
    n=100,
    is_kept=lambda found: (
      found["exits_75"] == found["taken"]
      and found["lost_steps"] <= 1
      and found["identical"] == found["runs"]
    ),
  )
