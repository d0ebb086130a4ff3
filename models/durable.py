"""Writing so that a kill or a power cut leaves the old or the new, no mixture."""

import os

from etils import epath


def write_text(path: epath.Path, text: str) -> None:
  """Puts a file in the place of what was there, in one move.

  Raises:
    OSError: names the file; what was there is as it was.
  """
  if "://" in str(path):  # an object appears whole or not at all
    path.write_text(text)
    return
  part = path.with_name(f"{path.name}.part")
  try:
    with open(part, "w") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
    sync(path.parent)
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from error


def sync(path: epath.Path) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  if "://" in str(path):
    return
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
