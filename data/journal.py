"""Work that can be killed at any moment, and goes on where it was.

The work for NAME is done in the folder .NAME.partial beside it, under the
journal .NAME.journal: a first line that says what the work is made from, then a
line for each thing that is finished. The journal is locked by the process that
works; another one waits. A work that is not made from the same begins anew.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging
from etils import epath

from data.nearby import cache_folder, is_remote

WAIT_SECONDS = 0.2


def work_folder(out: epath.Path) -> pathlib.Path:
  """Where the work for a folder is done, which is always on this machine."""
  if not is_remote(out):
    return pathlib.Path(out.parent) / f".{out.name}.partial"
  digest = hashlib.sha256(os.fspath(out).encode()).hexdigest()[:16]
  return cache_folder() / f".{out.name}.{digest}.partial"


def is_idle(out: epath.Path) -> bool:
  """Whether no work for a folder goes on, or was left."""
  return not _journal(work_folder(out)).exists()


def _journal(folder: pathlib.Path) -> pathlib.Path:
  return folder.with_suffix(".journal")


class Journal:
  """What is finished, in order: read, appended to, forgotten."""

  def __init__(self, file, folder: pathlib.Path):
    self._file, self.folder = file, folder
    self.entries: list[dict[str, Any]] = []

  def begin(
    self,
    made_from: Any,
    is_sound: Callable[[dict[str, Any], pathlib.Path], bool],
  ) -> None:
    """Takes up the work if it is made from the same, else begins anew.

    Args:
      made_from: anything that JSON holds.
      is_sound: whether what an entry says is in the folder; from the first one
        that is not on, the work is done again.
    """
    entries, size = [], 0
    self._file.seek(0)
    for line in self._file:
      entry = _parsed(line)  # the last one may be torn
      if entry is None:
        break
      if entries and not is_sound(entry, self.folder):
        break
      entries.append(entry)
      size += len(line)
    if entries[:1] == [made_from] and self.folder.exists():
      self._file.truncate(size)
      self.entries = entries[1:]
      if self.entries:
        logging.info("going on with %s", self.folder)
      return
    self.sweep()
    self.folder.mkdir(parents=True)
    self.append(made_from)
    self.entries = []

  def append(self, entry: Any) -> None:
    """Writes down that something is finished; from here on it is not redone."""
    self._file.seek(0, os.SEEK_END)
    self._file.write(json.dumps(entry).encode() + b"\n")
    self._file.flush()
    os.fsync(self._file.fileno())
    self.entries.append(entry)

  def sweep(self) -> None:
    """Forgets the work."""
    shutil.rmtree(self.folder, ignore_errors=True)
    self._file.truncate(0)
    self.entries = []


def _parsed(line: bytes) -> dict[str, Any] | None:
  try:
    entry = json.loads(line)
  except ValueError:
    return None
  return entry if isinstance(entry, dict) and line.endswith(b"\n") else None


@contextlib.contextmanager
def held(out: epath.Path) -> Iterator[Journal]:
  """Holds the journal of the work for a folder; waits for who holds it now.

  Death in any form lets go of it. Done work is the caller's to move away; the
  journal goes once the work's folder is gone.
  """
  folder = work_folder(out)
  folder.parent.mkdir(parents=True, exist_ok=True)
  path = _journal(folder)
  with _locked(path, out) as file:
    try:
      yield Journal(file, folder)
    finally:
      if not folder.exists():
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: pathlib.Path, out: epath.Path) -> Iterator[Any]:
  has_said = False
  while True:
    with path.open("ab+") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if not has_said:
          logging.info("another process is preparing %s: waiting for it", out)
          has_said = True
        time.sleep(WAIT_SECONDS)
        continue
      if path.exists() and os.path.samestat(
        path.stat(), os.fstat(file.fileno())
      ):
        yield file
        return
    # It was removed between opening and locking: take the new one.
