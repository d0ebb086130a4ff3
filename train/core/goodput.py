"""Where the time goes: every second of a run belongs to exactly one class.

  start       from the start of the process: interpreter, imports, hosts
  prepare     text to a store
  restore     reading a checkpoint, or making the first state
  compile     the step
  wait        for data
  step        steps that count
  lost        steps that do not: not applied, gone back over, or made again
              after a kill
  evaluate    evaluators and samples
  checkpoint  what a save holds the run up for, and waiting for the last one
  other       lines, logs, and what is none of the above
  down        between two lives of the run

Goodput is the share of `step`, from the first life's start to the last one's
end. WORKDIR/goodput.jsonl keeps a line for each life and is written while the
run goes on: a killed life has told its time up to a second before.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

CLASSES = (
  "start", "prepare", "restore", "compile", "wait", "step", "lost", "evaluate",
  "checkpoint", "other", "down",
)  # fmt: skip
FILE = "goodput.jsonl"
_BEAT_SECONDS = 1.0  # between two writes


class Ledger:
  """Books the seconds of one life of a run.

  Args:
    workdir: of the run; None books without writing (hosts but the first).

  Attributes:
    seconds: class -> seconds booked so far.
    on_turn: called whenever the class changes.
  """

  def __init__(self, workdir: epath.Path | None):
    self._path = None if workdir is None else workdir / FILE
    self.on_turn: Callable[[], None] = lambda: None
    self._began = next(_starts, time.time())
    self._stack = ["other"]
    self._turned = time.perf_counter()
    self._written = 0.0
    self._steps = [0, 0]  # at the life's start, and now
    self._n_made = self._n_lost = 0
    self.seconds = dict.fromkeys(CLASSES, 0.0)
    self.seconds["start"] = time.time() - self._began
    before = lives(workdir) if workdir is not None else []
    self._lines = [json.dumps(life) + "\n" for life in before]

  @contextlib.contextmanager
  def spend(self, name: str) -> Iterator[None]:
    """Books what goes on inside to a class, but for classes within it."""
    self._turn()
    self._stack.append(name)
    try:
      yield
    finally:
      self._turn()
      self._stack.pop()

  def begin(self, step: int) -> None:
    """The run goes on from a step; what the life before did past it is lost."""
    self._steps = [step, step]

  def reach(self, step: int) -> None:
    """One more step was made, which is this one."""
    self._n_made += 1
    self._steps[1] = step
    if time.perf_counter() - self._written > _BEAT_SECONDS:
      self.write()

  def lose(self, n_steps: int) -> None:
    """So many steps of this life did not count."""
    self._n_lost += n_steps

  def write(self) -> None:
    """Brings the line of this life up to date."""
    self._turn()
    self._written = time.perf_counter()
    if self._path is None:
      return
    part = self._path.parent / f"{self._path.name}.part"
    self._path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # a full disk is told of by a save
      part.write_text("".join(self._lines) + json.dumps(self.life()) + "\n")
      part.replace(self._path)

  def life(self) -> dict[str, Any]:
    """The line of this life."""
    booked = sum(self.seconds.values())
    return {
      "began": self._began,
      "ended": self._began + booked,
      "from_step": self._steps[0],
      "to_step": self._steps[1],
      "n_made": self._n_made,
      "n_lost": self._n_lost,
      "seconds": self.seconds,
    }

  def _turn(self) -> None:
    now = time.perf_counter()
    self.seconds[self._stack[-1]] += now - self._turned
    self._turned = now
    self.on_turn()


def lives(workdir: epath.Path) -> list[dict[str, Any]]:
  """The lives of a run so far, oldest first."""
  path = workdir / FILE
  found = []
  for line in path.read_text().splitlines() if path.exists() else []:
    with contextlib.suppress(ValueError):
      found.append(json.loads(line))
  return found


def account(lives: list[dict[str, Any]]) -> dict[str, float]:
  """Seconds by class over all lives; they add up to the time that passed.

  Steps that the next life made again move from `step` to `lost`, at the pace
  of the life that made them first.
  """
  total = dict.fromkeys(CLASSES, 0.0)
  for life, after in itertools.zip_longest(lives, lives[1:]):
    for name, seconds in life["seconds"].items():
      total[name] += seconds
    n_lost = life["n_lost"]
    if after is not None:
      n_lost += max(life["to_step"] - after["from_step"], 0)
      total["down"] += max(after["began"] - life["ended"], 0)
    lost = life["seconds"]["step"] * min(n_lost / max(life["n_made"], 1), 1)
    total["step"] -= lost
    total["lost"] += lost
  return total


def share(lives: list[dict[str, Any]]) -> float:
  """The goodput."""
  total = account(lives)
  return total["step"] / max(sum(total.values()), 1e-9)


def describe(total: dict[str, float]) -> str:
  """One line: the goodput, and where the rest went, largest first."""
  wall = max(sum(total.values()), 1e-9)
  rest = sorted(((s, n) for n, s in total.items() if n != "step"), reverse=True)
  parts = [f"{n} {s:.1f} s" for s, n in rest if s >= 0.05]
  return (
    f"goodput {total['step'] / wall:.1%}: steps took {total['step']:.1f} of "
    f"{wall:.1f} s" + (f", {', '.join(parts)}" if parts else "")
  )


def _process_seconds() -> float:
  """Seconds since this process began; 0 where the system does not tell."""
  try:
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
      ticks = int(stat.read().rpartition(")")[2].split()[19])
      return float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
  except (OSError, ValueError):
    return 0.0


# The start of the process belongs to the first run in it.
_starts = iter([time.time() - _process_seconds()])
