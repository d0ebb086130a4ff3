"""TensorBoard's event files, written by whoever calls.

tensorboardX's own writer has a thread that dies of a full disk; then its queue
fills, and closing it waits for ever.
"""

import os
import time
from typing import Any

from etils import epath, epy

from train.core.sinks import Past, Text

with epy.lazy_imports():  # it imports torch where that is installed: 2 s
  import tensorboardX

_FLUSH_SECONDS = 10


class Board:
  """One event file a beginning; a disk that fails raises OSError in the caller.

  What an earlier file holds past the step is not shown any more.
  """

  def __init__(self, folder: epath.Path):
    self._folder = folder
    self._writer = None

  def begin(self, past: Past) -> None:
    """Opens a file that hides what came after the step."""
    self.close()
    self._writer = tensorboardX.event_file_writer.EventsWriter(
      str(self._folder / "events"), f".{os.getpid()}"
    )
    self._flushed = time.monotonic()
    if past.step:
      events = tensorboardX.proto.event_pb2
      started = events.SessionLog(status=events.SessionLog.START)
      self._write(past.step + 1, session_log=started)

  def row(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Adds a point to each curve."""
    for key, value in values.items():
      point = tensorboardX.summary.scalar(f"{kind}/{key}", value)
      self._write(step, summary=point)

  def text(self, text: Text) -> None:
    """Adds a text, as Markdown."""
    shown = tensorboardX.summary.text(text.name, f"```\n{text.text}\n```")
    self._write(text.step, summary=shown)

  def flush(self) -> None:
    """Has its own pace."""

  def close(self) -> None:
    """Writes what is left."""
    if self._writer is not None:
      self._writer.close()
    self._writer = None

  def _write(self, step: int, **what: Any) -> None:
    event = tensorboardX.proto.event_pb2.Event(
      wall_time=time.time(), step=step, **what
    )
    self._writer.write_event(event)
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self._flushed = time.monotonic()
      self._writer.flush()
