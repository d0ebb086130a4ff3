"""Peers in processes of their own, which train in turns on the same tokens.

A worker answers each line of its input with a line of JSON: the seconds of a
few steps, on the clock and of the processor, their losses, and the most memory
it ever had. This module imports neither jax nor torch: a worker has its own.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

ROWS, LENGTH, STEPS = 4, 256, 2  # of a batch, and steps of a turn
RANK, LR, CLIP = 8, 1e-4, 1.0


def ids(vocab_size: int) -> np.ndarray:
  """Random tokens, [B, T + 1]."""
  shape = ROWS, LENGTH + 1
  return np.random.default_rng(0).integers(0, vocab_size, shape, np.int32)


def work(train: Callable[[], float]) -> None:
  """Makes steps when asked, until the input ends.

  Args:
    train: makes a step and gives its mean loss.
  """
  for _ in sys.stdin:
    seconds, cpu_seconds, losses = [], [], []
    for _ in range(STEPS):
      started, worked = time.perf_counter(), time.process_time()
      losses.append(train())
      seconds.append(time.perf_counter() - started)
      cpu_seconds.append(time.process_time() - worked)
    said = {
      "seconds": seconds,
      "cpu_seconds": cpu_seconds,
      "losses": losses,
      "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }
    print(json.dumps(said), flush=True)


class Worker:
  """A process that `work`s."""

  def __init__(self, module: str, *arguments: str):
    self._process = subprocess.Popen(
      [sys.executable, "-m", module, *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      encoding="utf-8",
    )

  def turn(self) -> dict:
    """Has it make a few steps.

    Raises:
      RuntimeError: it is gone.
    """
    self._process.stdin.write("go\n")
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      code = self._process.wait()
      raise RuntimeError(f"{self._process.args} ended with {code}.")
    return json.loads(line)

  def end(self) -> None:
    """Lets it go."""
    self._process.stdin.close()
    self._process.wait()
