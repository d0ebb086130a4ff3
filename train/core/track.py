"""What a run says: lines for people, rows for programs, curves for both.

metrics.jsonl and the TensorBoard events are written by a thread; the loop only
hands over numbers. Rows after the step that a run resumes from are dropped
first: every step stands there once.
"""

import contextlib
import json
import queue
import threading
from typing import Any, Protocol, runtime_checkable

import jax
from etils import epath

from train.core import board


@runtime_checkable
class Tracker(Protocol):
  """Where numbers and texts of a run go."""

  def log(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Takes numbers of one step: kind is train, eval, ..."""
    ...

  def text(self, step: int, name: str, text: str) -> None:
    """Takes a text of one step."""
    ...

  def say(self, line: str) -> None:
    """Takes a line for whoever watches."""
    ...

  def rewind(self, step: int) -> None:
    """The run went back to a step: forgets what came after it."""
    ...

  def close(self) -> None:
    """Writes what is left."""
    ...


class Silent:
  """The tracker of all processes but the first, which has the same numbers."""

  def log(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Drops them."""

  def text(self, step: int, name: str, text: str) -> None:
    """Drops it."""

  def say(self, line: str) -> None:
    """Drops it."""

  def rewind(self, step: int) -> None:
    """Has nothing to forget."""

  def close(self) -> None:
    """Has nothing to write."""

  def __enter__(self) -> "Tracker":
    return self

  def __exit__(self, *exception) -> None:
    self.close()


class Terminal(Silent):
  """Lines only."""

  def say(self, line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


class Files(Terminal):
  """metrics.jsonl, TensorBoard events and the terminal.

  What cannot be written, as on a full disk, is lost and told of once: a run
  does not end for its log.
  """

  def __init__(self, workdir: epath.Path, step: int):
    self._workdir, self._is_failing = workdir, False
    self._open(step)
    self._queue: queue.SimpleQueue = queue.SimpleQueue()
    self._thread = threading.Thread(
      target=self._work, name="tracker", daemon=True
    )
    self._thread.start()

  def log(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Queues a row."""
    self._queue.put((self._row, step, kind, values))

  def text(self, step: int, name: str, text: str) -> None:
    """Queues a text; it goes to TensorBoard and to samples.txt."""
    self._queue.put((self._sample, step, name, text))

  def rewind(self, step: int) -> None:
    """Queues the removal of the rows past a step."""
    self._queue.put((self._reopen, step))

  def close(self) -> None:
    """Writes what is queued and closes the files."""
    self._queue.put(None)
    self._thread.join()

  def _work(self) -> None:
    while item := self._queue.get():
      write, *arguments = item
      try:
        write(*arguments)
      except OSError as error:
        if not self._is_failing:
          self.say(f"the log cannot be written, and goes on: {error}")
        self._is_failing = True
    with contextlib.suppress(OSError):
      self._close()

  def _open(self, step: int) -> None:
    path = self._workdir / "metrics.jsonl"
    kept = [row for row in rows(self._workdir) if row["step"] <= step]
    part = self._workdir / "metrics.jsonl.part"  # a kill tears no log
    part.write_text("".join(json.dumps(row) + "\n" for row in kept))
    part.replace(path)
    self._jsonl = path.open("a")
    self._board = board.Board(self._workdir, step)

  def _close(self) -> None:
    self._jsonl.close()
    self._board.close()

  def _reopen(self, step: int) -> None:
    self._close()
    self._open(step)

  def _row(self, step: int, kind: str, values: dict[str, float]) -> None:
    self._jsonl.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
    if self._queue.empty():
      self._jsonl.flush()
    for key, number in values.items():
      self._board.scalar(step, f"{kind}/{key}", number)

  def _sample(self, step: int, name: str, text: str) -> None:
    self._board.text(step, name, f"```\n{text}\n```")
    with (self._workdir / "samples.txt").open("a") as file:
      file.write(f"--- step {step}, {name}\n{text}\n")


def terminal() -> Tracker:
  """Lines of the first process; the others are silent."""
  return Silent() if jax.process_index() else Terminal()


def open_tracker(workdir: epath.Path, step: int) -> Tracker:
  """The tracker of this process, for a run that goes on after `step`."""
  if jax.process_index():
    return Silent()
  workdir.mkdir(parents=True, exist_ok=True)
  return Files(workdir, step)


def rows(workdir: epath.Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl so far; a torn last line is left out."""
  path = workdir / "metrics.jsonl"
  found = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      found.append(json.loads(line))
    except ValueError:
      break
  return found
