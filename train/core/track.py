"""What a run says: lines for people, rows for programs, curves for both.

The loop only hands over numbers. Each sink, metrics.jsonl, TensorBoard, W&B or
MLflow, has a queue and a thread of its own: one that is slow or fails holds up
neither the run nor another. Rows after the step that a run resumes from are
dropped first: every step stands there once.
"""

import dataclasses
import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import jax
from etils import epath

from configs import fields
from train.core import board, services, sinks

Name = Literal["tensorboard", "wandb", "mlflow"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Who is told of a run, beside metrics.jsonl, samples.txt and the terminal."""

  trackers: tuple[Name, ...] = ("tensorboard",)  # wandb, mlflow are extras
  project: str = "throughline"  # of W&B; the experiment of MLflow
  name: str = ""  # of the run there; "" is what the workdir is called
  # A server or a database; "" is WORKDIR/mlflow/mlflow.db.
  mlflow_uri: str = ""
  # Offline keeps all in WORKDIR/wandb, for `wandb sync`; online needs a login.
  wandb_mode: Literal["offline", "online"] = "offline"
  report: bool = True  # WORKDIR/report.md and curves.png, once a run has ended

  def __post_init__(self):
    fields.check(self)
    for name, value, readers in (
      ("name", self.name, {"wandb", "mlflow"}),
      ("mlflow_uri", self.mlflow_uri, {"mlflow"}),
      ("wandb_mode", self.wandb_mode == "online", {"wandb"}),
    ):
      if value and not readers & {*self.trackers}:
        raise ValueError(
          f"{name}={getattr(self, name)!r} is read by {' and '.join(sorted(readers))} "
          f"alone: add that to trackers={self.trackers}, or leave it out."
        )


def check(config: Config) -> None:
  """Checks that what is asked for is installed; imports none of it.

  Raises:
    ValueError: a tracker is not.
  """
  for name in config.trackers:
    if name != "tensorboard" and importlib.util.find_spec(name) is None:
      raise ValueError(
        f"log.trackers={config.trackers} asks for {name}, which is not "
        f"installed: pip install -e '.[{name}]', or leave it out."
      )


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


class Log(Terminal):
  """The terminal, and any number of sinks.

  What one cannot take, as a full disk or a server that is gone, is told of
  once: a run does not end for its log.

  Args:
    workdir: of the run, where the first sink writes.
    places: sinks by the names that they are told of by; files first.
    step: that the run goes on from.
  """

  def __init__(
    self, workdir: epath.Path, places: Mapping[str, sinks.Sink], step: int
  ):
    self._workdir = workdir
    self._lanes = [_Lane(*pair, self.say) for pair in places.items()]
    self._begin(step)

  def log(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Queues a row."""
    for lane in self._lanes:
      lane.put(lane.sink.row, step, kind, values)

  def text(self, step: int, name: str, text: str) -> None:
    """Queues a text."""
    for lane in self._lanes:
      lane.put(lane.sink.text, sinks.Text(step, name, text))

  def rewind(self, step: int) -> None:
    """Queues the removal of what came after a step."""
    self._lanes[0].wait()  # what it wrote is read again
    self._begin(step)

  def close(self) -> None:
    """Writes what is queued and closes the sinks."""
    for lane in self._lanes:
      lane.put(None)
    for lane in self._lanes:
      lane.join()

  def _begin(self, step: int) -> None:
    past = sinks.past(self._workdir, step)
    for lane in self._lanes:
      lane.put(lane.sink.begin, past)


class _Lane:
  """A sink with its queue and its thread."""

  def __init__(self, name: str, sink: sinks.Sink, say: Callable[[str], None]):
    self.sink = sink
    self._name, self._say = name, say
    self._is_failing = self._is_lost = False
    self._queue: queue.SimpleQueue = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._work, name=name, daemon=True)
    self._thread.start()

  def put(self, act: Callable[..., None] | None, *arguments: Any) -> None:
    """Queues a call of the sink; None closes it."""
    self._queue.put((act, *arguments))

  def wait(self) -> None:
    """Blocks until what is queued can be read back."""
    self.put(self.sink.flush)
    written = threading.Event()
    self.put(written.set)
    written.wait()

  def join(self) -> None:
    """Blocks until the sink is closed."""
    self._thread.join()

  def _work(self) -> None:
    while True:
      act, *arguments = self._queue.get()
      if act is None:
        break
      if act == self.sink.begin:
        self._is_lost = False
      if getattr(act, "__self__", None) is self.sink and self._is_lost:
        continue
      self._try(act, *arguments)
      if self._queue.empty() and not self._is_lost:
        self._try(self.sink.flush)
    self._try(self.sink.close)

  def _try(self, act: Callable[..., None], *arguments: Any) -> None:
    try:
      act(*arguments)
    except Exception as error:  # of whatever library
      # A disk may have room again; who fails otherwise is asked no more.
      self._is_lost = not isinstance(error, OSError)
      if not self._is_failing:
        said = " ".join(str(error).split())
        self._say(f"{self._name} cannot be written, the run goes on: {said}")
      self._is_failing = True


def terminal() -> Tracker:
  """Lines of the first process; the others are silent."""
  return Silent() if jax.process_index() else Terminal()


def open_tracker(
  workdir: epath.Path,
  step: int,
  config: Config = Config(),
  settings: dict[str, Any] | None = None,
) -> Tracker:
  """The tracker of this process, for a run that goes on after `step`.

  Args:
    workdir: of the run.
    step: that it goes on from.
    config: who is told.
    settings: the resolved config, for those who show it.
  """
  if jax.process_index():
    return Silent()
  workdir.mkdir(parents=True, exist_ok=True)
  make = {
    "tensorboard": lambda: board.Board(workdir),
    "wandb": lambda: services.Wandb(workdir, config, settings or {}),
    "mlflow": lambda: services.Mlflow(workdir, config, settings or {}),
  }
  chosen = {"metrics.jsonl": sinks.Jsonl(workdir)}
  chosen |= {name: make[name]() for name in config.trackers}
  return Log(workdir, chosen, step)
