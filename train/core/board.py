"""TensorBoard's event files, written by whoever calls.

tensorboardX's own writer has a thread that dies of a full disk; then its queue
fills, and closing it waits for ever.
"""

import os
import time
from typing import Any

from etils import epath, epy

with epy.lazy_imports():  # it imports torch where that is installed: 2 s
  import tensorboardX

_FLUSH_SECONDS = 10


class Board:
  """One event file; a disk that fails raises OSError in the caller.

  Args:
    folder: where TensorBoard looks.
    step: what an earlier file holds past it shall not be shown; 0: nothing.
  """

  def __init__(self, folder: epath.Path, step: int):
    self._writer = tensorboardX.event_file_writer.EventsWriter(
      str(folder / "events"), f".{os.getpid()}"
    )
    self._flushed = time.monotonic()
    if step:
      events = tensorboardX.proto.event_pb2
      started = events.SessionLog(status=events.SessionLog.START)
      self._write(step + 1, session_log=started)

  def scalar(self, step: int, name: str, value: float) -> None:
    """Adds a point to a curve."""
    self._write(step, summary=tensorboardX.summary.scalar(name, value))

  def text(self, step: int, name: str, text: str) -> None:
    """Adds a text, as Markdown."""
    self._write(step, summary=tensorboardX.summary.text(name, text))

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()

  def _write(self, step: int, **what: Any) -> None:
    event = tensorboardX.proto.event_pb2.Event(
      wall_time=time.time(), step=step, **what
    )
    self._writer.write_event(event)
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self._flushed = time.monotonic()
      self._writer.flush()
