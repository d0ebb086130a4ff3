"""What lies far away (gs://, s3://), brought to this machine.

Paths are etils.epath's: what has a scheme needs a backend (gcsfs, s3fs). Some
libraries read local files only; for them a file is copied, for a while or into
the cache, where it goes by its digest and several processes share it.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from absl import logging
from etils import epath


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path needs a backend."""
  return "://" in os.fspath(path)


def cache_folder() -> pathlib.Path:
  """Where this machine keeps what it can make or fetch again."""
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(home).expanduser() / "throughline"


@contextlib.contextmanager
def lent(path: epath.Path) -> Iterator[str]:
  """Gives a path on this machine for as long as it is used."""
  if not is_remote(path):
    yield os.fspath(path)
    return
  with tempfile.TemporaryDirectory(prefix="throughline-") as folder:
    copy = pathlib.Path(folder) / path.name
    copy_file(path, epath.Path(copy))
    yield str(copy)


def cached(path: epath.Path, sha256: str) -> str:
  """Gives a path on this machine that stays: the file's own, or its copy's.

  Raises:
    ValueError: the file is not what its digest says.
  """
  if not is_remote(path):
    return os.fspath(path)
  copy = cache_folder() / f"{sha256}{path.suffix}"
  if not copy.exists():
    copy.parent.mkdir(parents=True, exist_ok=True)
    logging.info("fetching %s into %s", path, copy.parent)
    partial = epath.Path(f"{copy}.{os.uname().nodename}.{os.getpid()}")
    try:
      copy_file(path, partial)
      if file_sha256(partial) != sha256:
        raise ValueError(
          f"{path} is not what was prepared (SHA-256 differs). Prepare the"
          " store again."
        )
      partial.replace(copy)
    finally:
      partial.unlink(missing_ok=True)
  return str(copy)


def copy_file(source: epath.Path, target: epath.Path) -> None:
  """Copies a file, from anywhere to anywhere."""
  with source.open("rb") as there, target.open("wb") as here:
    shutil.copyfileobj(there, here, 1 << 20)


def file_sha256(path: epath.Path) -> str:
  """SHA-256 of a file's content, in hex."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
