"""What makes a folder a checkpoint: size and SHA-256 of every file in it.

manifest.json is written last, once all that it names is on the disk. Without
it a folder is no checkpoint; where a file is not as it says, a damaged one.
"""

import concurrent.futures
import hashlib
import json
import os
from typing import Any

from etils import epath

from models import durable

NAME = "manifest.json"
Files = dict[str, dict[str, Any]]  # path in the folder -> bytes, sha256
# Hashing lets go of the interpreter; a file is read by one thread.
_N_THREADS = min(8, os.cpu_count() or 1)


def names(path: epath.Path) -> list[str]:
  """The files of a folder but its manifest, in one order for all who look."""
  found = []
  for child in path.iterdir():
    if child.is_dir():
      found += [f"{child.name}/{name}" for name in names(child)]
    elif not child.name.startswith(NAME):
      found.append(child.name)
  return sorted(found)


def describe(path: epath.Path, names: list[str]) -> Files:
  """Digests files to which nobody writes any more, and sees them on the disk."""

  def settle(name: str) -> dict[str, Any]:
    durable.sync(path / name)
    return _describe(path / name)

  with concurrent.futures.ThreadPoolExecutor(_N_THREADS) as pool:
    return dict(zip(names, pool.map(settle, names), strict=True))


def seal(path: epath.Path, known: Files | None = None) -> None:
  """Writes the manifest: from now on the folder is a checkpoint.

  Args:
    path: a folder that nobody else writes to any more.
    known: what `describe` said of some of its files.
  """
  files = dict(known or {})
  files |= describe(path, [n for n in names(path) if n not in files])
  for folder in {(path / name).parent for name in files} | {path.parent}:
    durable.sync(folder)
  text = json.dumps({"format": 1, "files": dict(sorted(files.items()))})
  durable.write_text(path / NAME, text)


def verify(
  path: epath.Path,
  process: int = 0,
  n_processes: int = 1,
  *,
  part: str = "",
) -> str | None:
  """What is wrong with a process's share of a checkpoint, in one line.

  Args:
    path: the checkpoint.
    process: the index of this process.
    n_processes: that share the work.
    part: how the names of the files begin that are looked at.

  Returns:
    None where all of it is as it was written.
  """
  try:
    found = json.loads((path / NAME).read_text())
    if found["format"] != 1:
      return f"{NAME} has format {found['format']}, and only 1 is known"
    files = [
      (name, {"bytes": int(file["bytes"]), "sha256": str(file["sha256"])})
      for name, file in sorted(found["files"].items())
      if name.startswith(part)
    ]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return f"{NAME} cannot be read: {error!r}"
  with concurrent.futures.ThreadPoolExecutor(_N_THREADS) as pool:
    problems = pool.map(
      lambda file: _compare(path, *file), files[process::n_processes]
    )
    return next(filter(None, problems), None)


def digest(path: epath.Path) -> str:
  """SHA-256 of the manifest, which stands for all that the checkpoint holds."""
  return hashlib.sha256((path / NAME).read_bytes()).hexdigest()


def listed(path: epath.Path, part: str) -> list[str]:
  """The files of a whole checkpoint that begin so; what else lies there is none."""
  files = json.loads((path / NAME).read_text())["files"]
  return sorted(name for name in files if name.startswith(part))


def _compare(path: epath.Path, name: str, wanted: dict[str, Any]) -> str | None:
  try:
    if not (path / name).exists():
      return f"{name} is missing"
    n_bytes = (path / name).stat().length
    if n_bytes != wanted["bytes"]:
      return f"{name} has {n_bytes} bytes, not {wanted['bytes']}"
    if _describe(path / name) != wanted:
      return f"{name} has another sha256 than when it was written"
  except OSError as error:
    return f"{name} cannot be read: {error}"
  return None


def _describe(file: epath.Path) -> dict[str, Any]:
  with file.open("rb") as stream:
    digest = hashlib.file_digest(stream, "sha256")
    return {"bytes": stream.tell(), "sha256": digest.hexdigest()}
