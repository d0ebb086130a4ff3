"""Makes runs hang: does the watchdog end them, and do they go on after?

    python -m benchmarks.faults.hang --n 3

A run is made to wait for ever: for data, for the disk behind a save, or in a
loop of Python. The watchdog must write the stacks of all threads, that of the
place among them, and end the process with 1; the next life must end at the bits
of a run that never hung.

The last line is JSON: hangs, ended, named, identical, seconds (from the start
of a life to its end by the watchdog, median).
"""

import functools
import statistics
import threading
import time
from typing import Any

from etils import epath

from benchmarks.faults import dose, runs
from data import pipeline
from models import manifest

HANG_SECONDS = 10  # longer than a compile that is read back


def never_comes(*_: Any) -> None:
  """Waits for what does not come."""
  threading.Event().wait()


def never_ends(*_: Any) -> None:
  """Computes for ever."""
  while True:
    pass


# What is put in the place of what: (owner, its method, what hangs, call).
KINDS = {
  "data": (pipeline.Prefetch, "__next__", never_comes, 7),
  "disk": (manifest, "seal", never_comes, 2),
  "loop": (pipeline.Prefetch, "__next__", never_ends, 7),
}


def plant(kind: str) -> None:
  """Lets the n-th call of a function hang, in the process of a run."""
  owner, name, hang, n_calls = KINDS[kind]
  works, calls = getattr(owner, name), iter(range(1, n_calls))

  def sometimes(*arguments, **named):
    return (hang if next(calls, None) is None else works)(*arguments, **named)

  setattr(owner, name, sometimes)


def hang(n: int, folder: epath.Path) -> dict[str, Any]:
  """Hangs n runs; returns the figures."""
  whole = folder / "whole"
  runs.start(runs.page(folder, train={"steps": 12}), whole).wait()
  expected = runs.digest(whole)
  config = runs.page(folder, train={"steps": 12, "hang_seconds": HANG_SECONDS})
  ended = named = identical = 0
  seconds = []
  for i in range(n):
    kind = list(KINDS)[i % len(KINDS)]
    workdir, began = folder / f"{i}", time.monotonic()
    life = runs.start(config, workdir, fault=functools.partial(plant, kind))
    ended += life.wait() == 1
    seconds.append(time.monotonic() - began)
    named += KINDS[kind][2].__name__ in life.said
    identical += runs.start(config, workdir).wait() == 0 and (
      runs.digest(workdir) == expected
    )
  return {
    "hangs": n,
    "ended": ended,
    "named": named,
    "identical": identical,
    "seconds": round(statistics.median(seconds), 1),
  }


if __name__ == "__main__":
  dose.run(
    hang,
    n=3,
    is_kept=lambda f: f["hangs"] == f["ended"] == f["named"] == f["identical"],
  )
