"""Lets the disk run full at many points: does training go on, is anything torn?

    python -m benchmarks.faults.disk --n 50

Every case is a run in a workdir that is a disk of its own, a tmpfs: what fails is
what really fails on a full disk, TensorStore's writes included. In turn,

  small   the room ends somewhere between the first byte and the third checkpoint:
          all steps are made, what has a manifest is whole, and the exit code says
          whether the last state was saved; with more room the same command goes on
  filled  something else fills the disk at a random moment and leaves again later:
          the run ends well by itself
  frozen  the folder of the checkpoints, a disk of its own, becomes read-only at a
          random moment, and writable again

and all end at the bits of a run on a large disk. Mounting needs no root: the
program starts itself anew in a mount namespace of its own (unshare(1)), with which
the disks vanish whatever happens.

The last line is JSON: cases, hit (in which a save failed, and was told of in one
line), survived (all of the above held), torn (checkpoints that have a manifest and
do not verify), identical.
"""

import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from etils import epath

from benchmarks.faults import dose, runs
from configs import door
from models import checkpoint, manifest

STEPS = 12
KINDS = ("small", "filled", "frozen")
_INSIDE = "THROUGHLINE_DISKS"  # set where mounting is allowed
_FAILED = re.compile(r"^step \d+ was not saved: .*; the run goes on, .*$", re.M)


def disk(n_cases: int, folder: epath.Path) -> dict[str, int]:
  """Runs the cases; returns the figures."""
  config = runs.page(
    folder,
    train={"steps": STEPS, "log_every_steps": 1},
    checkpoint={"every_steps": 2},
  )
  calm, rng = folder / "calm", random.Random(0)
  assert runs.start(config, calm).wait() == 0
  expected, size = runs.digest(calm), _used(calm)
  found = dict(cases=n_cases, hit=0, survived=0, torn=0, identical=0)
  for i in range(n_cases):
    kind, workdir = KINDS[i % len(KINDS)], folder / f"run{i}"
    room = size * (i + 1) // n_cases if kind == "small" else size * 3
    place = workdir / "checkpoints" if kind == "frozen" else workdir
    with _mounted(place, room):
      if kind == "small":
        lives, is_well = _cramped(config, workdir)
      else:
        lives, is_well = _troubled(config, workdir, kind, rng)
      torn = _torn(workdir)
      is_whole = lives[-1].wait() == 0 and not torn
      is_same = is_whole and runs.digest(workdir) == expected
    said = "".join(life.said for life in lives)
    survived = is_well and is_same and "Traceback" not in said
    found["hit"] += _FAILED.search(said) is not None
    found["torn"] += torn
    found["identical"] += is_same
    found["survived"] += survived
    if not survived:
      print(f"case {i}, {kind}:\n{said}", file=sys.stderr)
  return found


def _cramped(
  config: door.Config, workdir: epath.Path
) -> tuple[list[runs.Life], bool]:
  """Too little room for a life, enough for the next."""
  first = runs.start(config, workdir)
  code, n_made = first.wait(), first.said.count("tok/s")
  # With no room for the first byte it does not start.
  is_well = (code == 0 or code == 2) and n_made in (0, STEPS)
  is_well = is_well and not _torn(workdir)
  _mount(workdir, 64 << 20, "remount")
  second = runs.start(config, workdir)
  second.wait()
  return [first, second], is_well


def _troubled(
  config: door.Config, workdir: epath.Path, kind: str, rng: random.Random
) -> tuple[list[runs.Life], bool]:
  """A life with a bad time in it, that lasts until a save has failed."""
  life = runs.start(config, workdir)
  life.wait_for(lambda: "tok/s" in life.said)
  until = time.monotonic() + rng.uniform(0, 0.3)
  life.wait_for(lambda: time.monotonic() > until)
  with (
    _full(workdir) if kind == "filled" else _read_only(workdir / "checkpoints")
  ):
    life.wait_for(lambda: _FAILED.search(life.said) is not None)
  return [life], life.wait() == 0


@contextlib.contextmanager
def _full(workdir: epath.Path) -> Iterator[None]:
  balloon = workdir / "balloon"
  with open(balloon, "wb", buffering=0) as file:
    with contextlib.suppress(OSError):
      while file.write(bytes(4096)):
        pass
  yield
  balloon.unlink()


@contextlib.contextmanager
def _read_only(path: epath.Path) -> Iterator[None]:
  _change(path, "ro")
  yield
  _change(path, "rw")


def _change(path: epath.Path, to: str) -> None:
  """Tries for a minute: it is refused while a file there is being written."""
  ask = ["mount", "-o", f"remount,{to}", str(path)]
  until = time.monotonic() + 60
  while subprocess.run(ask, capture_output=True).returncode:
    if time.monotonic() > until:
      raise TimeoutError(f"{path} did not become {to} in a minute")


@contextlib.contextmanager
def _mounted(path: epath.Path, n_bytes: int) -> Iterator[None]:
  path.mkdir(parents=True)
  _mount(path, n_bytes)
  try:
    yield
  finally:
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def _mount(path: epath.Path, n_bytes: int, *options: str) -> None:
  how = ",".join([*options, f"size={n_bytes}"])
  ask = ["mount", "-t", "tmpfs", "-o", how, "none", str(path)]
  subprocess.run(ask, check=True)


def _used(path: epath.Path) -> int:
  """Bytes in pages of 4 KiB, as a disk counts."""
  ask = ["du", "-s", "-B1", str(path)]
  done = subprocess.run(ask, check=True, capture_output=True, text=True)
  return int(done.stdout.split()[0])


def _torn(workdir: epath.Path) -> int:
  """Checkpoints that have a manifest and do not verify."""
  steps = checkpoint.steps(workdir)
  paths = [workdir / "checkpoints" / str(step) for step in steps]
  return sum(manifest.verify(path) is not None for path in paths)


def may_mount() -> bool:
  """Whether this machine lets a program have disks of its own."""
  try:
    with tempfile.TemporaryDirectory() as folder:
      ask = [*_alone(), "mount", "-t", "tmpfs", "none", folder]
      return subprocess.run(ask, capture_output=True).returncode == 0
  except FileNotFoundError:  # no Linux
    return False


def enclose() -> None:
  """Starts this program anew where it may mount."""
  if _INSIDE not in os.environ:
    inside = [sys.executable, "-m", "benchmarks.faults.disk", *sys.argv[1:]]
    os.environ[_INSIDE] = "1"
    os.execvp("unshare", [*_alone(), *inside])


def _alone() -> list[str]:
  """Runs what follows in a mount namespace of its own."""
  who = [] if os.geteuid() == 0 else ["--map-root-user"]
  return ["unshare", "--mount", *who]


if __name__ == "__main__":
  enclose()
  dose.run(
    disk,
    n=50,
    is_kept=lambda found: (
      found["survived"] == found["identical"] == found["cases"]
      and found["torn"] == 0
      and found["hit"] > found["cases"] / 2
    ),
  )
