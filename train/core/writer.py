"""Arrays to folders, behind the running step; a disk that fails says so.

Orbax's handlers write on threads of their own. Its AsyncCheckpointer around
them is not used: on an error it goes on while half of its threads still write,
and what it would do for a save to appear at once, a manifest does.

What the handlers make of a full disk is put right here: TensorStore has no
OSError, Orbax and asyncio print pages of stack traces for one error, and other
writes of the same save find their event loop closed.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from models import arrays

# Of the states of absl, those that a disk or a network can be in.
_STATES = (
  "ABORTED|DATA_LOSS|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|NOT_FOUND|"
  "PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE|UNKNOWN"
)
_LEAST_BYTES = 32 << 20  # written at once, however small the tree


class Writer:
  """Writes the parts of one save at a time, of all processes together."""

  def __init__(self):
    self._handlers: dict[epath.Path, ocp.PyTreeCheckpointHandler] = {}
    self._futures: list[Any] = []
    self._hook = sys.unraisablehook
    sys.unraisablehook = self._drop_closed_loops

  def start(self, trees: Mapping[epath.Path, Any]) -> None:
    """Returns when the trees may be changed; they are written meanwhile.

    Args:
      trees: folder, which is there and empty, -> tree of arrays.

    Raises:
      OSError: the disk takes no more.
    """
    self._handlers = {path: _handler(tree) for path, tree in trees.items()}

    async def begin():
      for path, tree in trees.items():
        self._futures += await self._handlers[path].async_save(
          arrays.absolute(path), args=ocp.args.PyTreeSave(tree)
        )

    # On a thread, for a notebook has a loop already where this is called.
    try:
      with _errors_of_disks(), concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, begin()).result()
    except OSError:
      with contextlib.suppress(OSError):
        self.wait()
      raise

  def wait(self) -> None:
    """Blocks until this process writes nothing any more.

    Raises:
      OSError: the disk took no more.
    """
    with contextlib.ExitStack() as all_of_them:
      while self._futures:  # which hold the arrays
        all_of_them.callback(_settle, self._futures.pop())

  def join(self) -> None:
    """Makes one of what the processes wrote; the first does, after all waited.

    Raises:
      OSError: the disk took no more.
    """
    with _errors_of_disks():
      for path, handler in self._handlers.items():
        handler.finalize(arrays.absolute(path))

  def close(self) -> None:
    """Lets what is under way end, and ends the threads."""
    with contextlib.suppress(OSError):
      self.wait()
    sys.unraisablehook = self._hook

  def _drop_closed_loops(self, unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      self._hook(unraisable)


def _handler(tree: Any) -> ocp.PyTreeCheckpointHandler:
  """Writes a sixteenth of a tree at once, for TensorStore copies small leaves.

  Compressed, its threads kept 670 MB after six saves of 288 MB, and saving took
  twice as long; weights would be 7 % smaller.
  """
  sizes = [
    shard.data.nbytes
    for leaf in jax.tree.leaves(tree)
    for shard in leaf.addressable_shards
  ]
  # Orbax refuses a leaf that is not smaller.
  n_bytes = max(max(sizes) + 1000, sum(sizes) // 16, _LEAST_BYTES)
  return ocp.PyTreeCheckpointHandler(
    use_compression=False, save_concurrent_gb=n_bytes / 1e9
  )


def _settle(future: Any) -> None:
  with _errors_of_disks():
    future.result()


@contextlib.contextmanager
def _errors_of_disks() -> Iterator[None]:
  try:
    yield
  except ValueError as error:
    if found := _as_disk_error(error):
      raise found from error
    raise


def _as_disk_error(error: BaseException | None) -> OSError | None:
  """What TensorStore means where it says ValueError; None: something else."""
  if isinstance(error, OSError):
    return error
  if code := re.search(r"os_error_code='(\d+)'", str(error)):
    return OSError(int(code[1]), os.strerror(int(code[1])))
  if isinstance(error, ValueError) and re.match(rf"({_STATES}): ", str(error)):
    return OSError(str(error))
  return None


def _is_news(record: logging.LogRecord) -> bool:
  """Whether a log line tells of anything but a disk, of which a save does."""
  return not (record.exc_info and _as_disk_error(record.exc_info[1]))


for _name in ("absl", "asyncio"):
  logging.getLogger(_name).addFilter(_is_news)
