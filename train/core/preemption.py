"""Asked to stop: the run saves, exits with 75, and can be started again.

SIGTERM is what schedulers send, SIGINT what Ctrl-C sends, SIGUSR1 what SLURM
sends ahead of time where it is told to (`--signal=USR1@120`).

Where jax has joined processes, all of them must stop at one step: jax takes the
SIGTERM of any one, and agrees with the others on a step that none has made yet.
Its own handler of SIGTERM stays, and the other signals are passed on to it.
"""

import os
import signal
import sys
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start it again
_INTERRUPTED = 130  # 128 + SIGINT, as shells say it


class Preemption:
  """Listens to signals while it is entered.

      with Preemption() as preemption:
        ...
        if preemption.is_asked(step):
          return EXIT_CODE

  The first signal asks. Another SIGINT ends the process at once: what a save
  that is cut short leaves behind is swept by the next start.
  """

  def __init__(self):
    self._asked = False
    self._joined = False
    self._before: dict[int, object] = {}

  def __enter__(self) -> "Preemption":
    self._joined = jax.distributed.is_initialized()
    numbers = [signal.SIGINT, signal.SIGUSR1]
    numbers += [] if self._joined else [signal.SIGTERM]
    self._before = {n: signal.signal(n, self._take) for n in numbers}
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def is_asked(self, step: int) -> bool:
    """Whether to stop behind this step; all processes get the same answer.

    Args:
      step: steps made so far. Every process asks after every step.
    """
    if self._joined:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def _take(self, number: int, frame: FrameType | None) -> None:
    del frame
    name = signal.Signals(number).name
    if self._asked and number == signal.SIGINT:
      _write(f"{name} again: ending at once\n")
      os._exit(_INTERRUPTED)
    if not self._asked:
      _write(f"{name}: saving behind this step; SIGINT ends at once\n")
    self._asked = True
    if self._joined:
      signal.raise_signal(signal.SIGTERM)


def _write(line: str) -> None:
  """Past Python's buffers: a handler may have interrupted a print."""
  os.write(sys.__stderr__.fileno(), line.encode())
