"""Turns a hang into the stacks of all threads and an exit.

A step that never ends, such as a collective that one host did not join, a
filesystem that went away, or a deadlock, costs a whole pod until somebody looks.
The clock is one of C: it runs on while Python waits or holds its lock.
"""

import faulthandler
import sys
from typing import TextIO


class Watchdog:
  """Ends the process, with 1, where nothing beats for so many seconds.

  Args:
    seconds: longer than the longest thing between two beats; 0: never ends it.
    file: where the stacks are written; it must be a real file.
  """

  def __init__(self, seconds: int, file: TextIO | None = None):
    self._seconds, self._file = seconds, file

  def beat(self) -> None:
    """All is well: the clock starts anew."""
    if self._seconds:
      file = self._file or sys.__stderr__
      faulthandler.dump_traceback_later(self._seconds, exit=True, file=file)

  def __enter__(self) -> "Watchdog":
    self.beat()
    return self

  def __exit__(self, *exception) -> None:
    self._seconds = 0  # what beats on behind the end arms nothing
    faulthandler.cancel_dump_traceback_later()
