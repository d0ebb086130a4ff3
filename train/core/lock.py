"""One job in a workdir: WORKDIR/lock names the process that holds it.

The owner touches it every 10 s. It is taken over when its process is known to
be gone, or, where that cannot be seen from here (another machine, another
container), when nobody has touched it for 120 s.

Two jobs that look at it at once take turns by flock(2). Addresses such as gs://
have no such thing: there, two jobs started within a second are not kept apart.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

BEAT_SECONDS = 10
SILENT_SECONDS = 120  # twelve missed beats: a slow network disk is not death


@dataclasses.dataclass(frozen=True)
class Owner:
  """The process that holds a workdir."""

  host: str
  machine: str | None  # where its pid means that process; None: unknown
  pid: int
  birth: str | None  # in ticks of the clock: pids are given again
  since: str


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[None]:
  """Keeps other jobs out; the first process holds it for all that have joined.

  Raises:
    ValueError: another job is at work there, or it cannot be written.
  """
  path, me = workdir / "lock", _myself()
  is_first = jax.process_index() == 0
  refusal = _take(path, me) if is_first else None
  if multihost_utils.broadcast_one_to_all(np.bool_(refusal is not None)):
    raise ValueError(refusal or f"{workdir} is in use: process 0 says by whom.")
  if not is_first:
    yield
    return
  over = threading.Event()
  beating = threading.Thread(
    target=_beat, args=(path, me, over), name="lock", daemon=True
  )
  beating.start()
  try:
    yield
  finally:
    over.set()
    beating.join()
    with _alone(path):
      if _read(path) in (None, me):
        path.unlink(missing_ok=True)


def _take(path: epath.Path, me: Owner) -> str | None:
  """Writes one's own name, or gives the reason why not."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
      other = _read(path)
      if other and (reason := _holds(path, other)):
        return reason
      path.write_text(json.dumps(dataclasses.asdict(me)))
  except OSError as error:
    return f"{path} cannot be written: {error}. Give another --workdir."
  return None


def _holds(path: epath.Path, other: Owner) -> str | None:
  """Why a workdir is not free; None, and a line, where its owner is gone."""
  who = f"process {other.pid} on {other.host}"
  silent = max(time.time() - path.stat().mtime, 0)
  if other.machine is not None and other.machine == _machine():
    alive, why = _birth(other.pid) == other.birth, "it has ended"
  else:
    alive, why = silent < SILENT_SECONDS, f"silent for {silent:.0f} s"
  if alive:
    return (
      f"{path.parent} is in use: {who} has it since {other.since}, last sign "
      f"{silent:.0f} s ago. Stop that job, or give another --workdir; where it "
      f"is long gone, its lock is taken over {SILENT_SECONDS} s after that sign."
    )
  logging.info("taking over %s from %s: %s", path, who, why)
  return None


def _beat(path: epath.Path, me: Owner, over: threading.Event) -> None:
  while not over.wait(BEAT_SECONDS):
    # A disk that fails is for the checkpoints to report.
    with contextlib.suppress(OSError), _alone(path):
      other = _read(path)
      if other == me and "://" not in str(path):
        os.utime(path)  # needs no room on a full disk
      elif other in (me, None):
        path.write_text(json.dumps(dataclasses.asdict(me)))
      else:
        # Stopped for minutes, say with its machine: what this job writes would
        # mix with what the new owner writes.
        logging.error("%s is process %d's now: ending", path, other.pid)
        os._exit(1)


def _myself() -> Owner:
  return Owner(
    host=socket.gethostname(),
    machine=_machine(),
    pid=os.getpid(),
    birth=_birth(os.getpid()),
    since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
  )


def _machine() -> str | None:
  """This boot of this machine, and this container on it."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return None


def _birth(pid: int) -> str | None:
  """When a process started; None where it is gone or waits to be buried."""
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return None
  state, *fields = stat.rpartition(")")[2].split()  # its name may hold spaces
  return None if state in "ZX" else fields[18]


def _read(path: epath.Path) -> Owner | None:
  """The owner; None where there is none or its writing was cut short."""
  try:
    return Owner(**json.loads(path.read_text()))
  except (FileNotFoundError, ValueError, TypeError):
    return None


@contextlib.contextmanager
def _alone(path: epath.Path) -> Iterator[None]:
  """Lets one process at a time look at the lock and change it."""
  if "://" in str(path):
    yield
    return
  while True:
    with open(path, "a") as file:
      with contextlib.suppress(OSError):  # a network disk without flock
        fcntl.flock(file, fcntl.LOCK_EX)
      if _is_at(file.fileno(), path):
        yield
        return


def _is_at(descriptor: int, path: epath.Path) -> bool:
  """Whether a file is still the one at a path: it may be removed meanwhile."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False
