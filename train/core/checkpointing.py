"""Saves a run while it goes on, and finds the place to go on from.

Arrays are written behind the running step. A checkpoint counts once its
manifest is written, last of all: what a kill leaves before that is swept by the
next start. A disk that is full, broken or read-only costs the save under way
and a line; the run goes on, and the earlier checkpoints stay.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from etils import epath

from configs import fields
from configs.ranges import Count, Natural
from data import pipeline
from models import arrays, base, card, checkpoint, durable, leaves, manifest
from sharding import hosts
from train.core import optim, parts, retention
from train.core.state import TrainState
from train.core.writer import Writer

_ARRAYS = ("params", "state")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How often, and which are kept."""

  every_steps: Natural = 0  # 0: only the last step, which is always saved
  keep_last: Count = 2  # newest checkpoints that stay
  keep_every_steps: Natural = 0  # those at its multiples stay for good; 0: none
  keep_best: retention.Best | None = None  # None: none for being good

  def __post_init__(self):
    fields.check(self)
    every, kept = self.every_steps, self.keep_every_steps
    if kept and (not every or kept % every):
      raise ValueError(
        f"keep_every_steps={kept} is no multiple of every_steps={every}: no "
        "checkpoint is made there. Make it one."
      )


@dataclasses.dataclass(frozen=True)
class Progress:
  """What a run needs beside its arrays to go on as if nothing had happened."""

  data: pipeline.State  # of the rows of this host; of all rows when restored
  loop: dict[str, Any]  # tokens seen, early stopping


class Checkpoints:
  """The checkpoints of one run, in workdir/checkpoints.

  All processes call its methods together.

  Args:
    workdir: of the run, which no other job may use.
    config: how often, which ones.
    settings: the resolved config of the run, plain data.
    copy_tokenizer: writes tokenizer.* into a folder.
    parent: the checkpoint that the run began from, if any.
    say: takes a line for the person who watches.
  """

  def __init__(
    self,
    workdir: epath.Path,
    config: Config,
    settings: dict[str, Any],
    copy_tokenizer: Callable[[epath.Path], None],
    parent: base.Parent | None = None,
    say: Callable[[str], None] = logging.info,
  ):
    self.every_steps = config.every_steps
    self._folder = workdir / "checkpoints"
    self._workdir = workdir
    self._config = config
    self._settings = settings
    self._copy_tokenizer = copy_tokenizer
    self._parent = parent
    self._say = say
    self._is_first = jax.process_index() == 0
    self._writer = Writer()
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._under_way: tuple[int, concurrent.futures.Future[str]] | None = None
    self._newest: int | None = None  # that is known to be whole
    self._problem = ""  # of the last save
    if self._is_first:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._sweep()

  def save(
    self, state: TrainState, progress: Progress, metrics: dict[str, float]
  ) -> None:
    """Starts a save; returns when the devices may go on.

    A disk that fails is told about, now or by the next call of any method.
    """
    self.wait()
    step = int(state.step)
    if step == self._newest:
      return
    path = self._folder / str(step)
    # params/ is what all others use; an average is not what goes on training.
    trees = {
      path / "params": parts.published(
        optim.eval_params(state.opt_state, state.params), state.frozen
      ),
      path / "state": _beside_params(state),
    }
    problem = _attempt(self._make_room, path) if self._is_first else ""
    said = hosts.gather(json.dumps([problem, dataclasses.asdict(progress)]))
    problem, rows = json.loads(said[0])[0], [json.loads(s)[1] for s in said]
    if not problem:
      problem = _attempt(self._writer.start, trees)
    texts = {
      "config.json": json.dumps(self._settings, indent=1),
      "card.json": json.dumps(
        card.make(step, *(self._parent or (None, None)), metrics), indent=1
      ),
      **{f"data/{i}.json": json.dumps(part) for i, part in enumerate(rows)},
    }
    finished = self._thread.submit(self._finish, path, texts, problem)
    self._under_way = step, finished

  def wait(self) -> None:
    """Blocks until the save under way is on the disk, or has failed."""
    if self._under_way is None:
      return
    (step, finished), self._under_way = self._under_way, None
    self._problem = finished.result()
    if not self._problem:
      self._newest = step
      return
    kept = "none is there yet"
    if self._newest is not None:
      kept = f"the newest whole one is of step {self._newest}"
    self._say(
      f"step {step} was not saved: {self._problem}; the run goes on, {kept}"
    )

  def finish(self) -> None:
    """Waits for the last save.

    Raises:
      ValueError: it failed, so that the last steps would be lost.
    """
    self.wait()
    if self._problem:
      raise ValueError(
        f"the last state was not saved to {self._folder}: {self._problem}. "
        "Mend that and start again with the same --workdir: it goes on from "
        + ("the start." if self._newest is None else f"step {self._newest}.")
      )

  def close(self) -> None:
    """Lets the save under way end, and ends the threads."""
    self._thread.shutdown()
    self._writer.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def restore(
    self, wanted: TrainState, say: Callable[[str], None]
  ) -> tuple[TrainState, Progress] | None:
    """The newest checkpoint that verifies, and why it was chosen; or None.

    Args:
      wanted: shapes, types and shardings, on whatever mesh this run has. Of a
        frozen base they are given back: a checkpoint does not hold it.
      say: takes a line for the person who watches.

    Raises:
      ValueError: there are checkpoints and none verifies, or it is of another
        model.
    """
    self.wait()
    steps = checkpoint.steps(self._workdir)
    found = json.loads(hosts.gather(json.dumps(steps))[0])
    share = jax.process_index(), jax.process_count()
    for step in reversed(found):
      path = self._folder / str(step)
      problems = hosts.gather(manifest.verify(path, *share) or "")
      problem = next(filter(None, problems), None)
      if problem is None:
        say(f"resuming from {path}: the newest of {len(found)} that verifies")
        self._newest = step
        return _read(path, wanted)
      say(f"passing over {path}: {problem}")
    if found:
      raise ValueError(
        f"no checkpoint in {self._folder} verifies: mend one from a backup, "
        "or use another --workdir."
      )
    return None

  def _make_room(self, path: epath.Path) -> None:
    self._sweep()
    _delete(path)  # damaged, or of a future that the run came back from
    for name in _ARRAYS:
      (path / name).mkdir(parents=True)

  def _finish(
    self, path: epath.Path, texts: dict[str, str], problem: str
  ) -> str:
    """Makes a checkpoint of what was started; on the thread.

    Returns:
      What the disk of any process had against it, the same on all; "" where
      nothing.
    """
    digests: manifest.Files = {}

    def digest():  # each process its share of what all have written
      names = [n for n in manifest.names(path) if n.split("/")[0] in _ARRAYS]
      share = names[jax.process_index() :: jax.process_count()]
      digests.update(manifest.describe(path, share))

    def complete():
      for name, text in texts.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
      self._copy_tokenizer(path)
      manifest.seal(path, digests)

    for work, is_for_all in (
      (self._writer.wait, True),
      (self._writer.join, False),
      (digest, True),
      (complete, False),
    ):
      if not problem and (is_for_all or self._is_first):
        problem = _attempt(work)
      said = hosts.gather(json.dumps([problem, digests]), "checkpoint")
      problems, parts = zip(*map(json.loads, said), strict=True)
      problem = "; ".join(dict.fromkeys(filter(None, problems)))
      for part in parts:
        digests |= part
    if self._is_first and problem:
      _clear_away(path)
    elif self._is_first:
      if hindrance := _attempt(self._prune, int(path.name)):
        self._say(f"old checkpoints were not removed: {hindrance}")
    return problem

  def _prune(self, newest: int) -> None:
    """Removes what need not stay, now that `newest` is whole.

    Later steps are damaged, for the run would have gone on from them.
    """
    c, steps = self._config, checkpoint.steps(self._workdir)
    saved = {
      step: _metrics(self._folder / str(step))
      for step in steps
      if step <= newest
    }
    stay = retention.kept(saved, c.keep_last, c.keep_every_steps, c.keep_best)
    for step in steps:
      if step not in stay:
        _delete(self._folder / str(step))

  def _sweep(self) -> None:
    """Removes what a save that did not end has left."""
    for path in self._folder.iterdir():
      is_ours = re.fullmatch(r"\d+(\..+)?", path.name)
      if is_ours and not (path / manifest.NAME).exists():
        path.rmtree()


def _read(path: epath.Path, wanted: TrainState) -> tuple[TrainState, Progress]:
  rest = arrays.restore(path / "state", _beside_params(wanted))
  frozen = wanted.frozen
  if "params" not in rest or frozen:
    published = parts.published(wanted.params, frozen)
    there = arrays.restore(path / "params", published)
    rest = {"params": leaves.like(wanted.params, there), **rest}
    if frozen:
      kept = leaves.like(frozen.kept, there)
      rest["frozen"] = frozen.replace(kept=kept)
  hosts_said = [
    json.loads((path / name).read_text())
    for name in manifest.listed(path, "data/")
  ]
  data = {row: s for part in hosts_said for row, s in part["data"].items()}
  progress = Progress(data, hosts_said[0]["loop"])
  return TrainState(**rest), progress


def _beside_params(state: TrainState) -> dict[str, Any]:
  rest = {
    "step": state.step,
    "opt_state": state.opt_state,
    "guard": state.guard,
  }
  if optim.is_averaged(state.opt_state):
    rest["params"] = state.params
  return rest


def _metrics(path: epath.Path) -> dict[str, float]:
  """What a checkpoint was measured at; nothing where its card is damaged."""
  try:
    found = json.loads((path / "card.json").read_text())["metrics"]
    return {str(name): float(value) for name, value in found.items()}
  except (ValueError, KeyError, TypeError, AttributeError):
    return {}


def _delete(path: epath.Path) -> None:
  if path.exists():
    (path / manifest.NAME).unlink(missing_ok=True)  # first: half of one is none
    durable.sync(path)
    path.rmtree()


def _clear_away(path: epath.Path) -> None:
  """Removes what a save has left that failed, so that the disk has its room.

  Of TensorStore's writes some may be under way yet, which nothing tells of; they
  make their folders anew. A disk that fails to remove is for the next sweep.
  """
  n_quiet = 0
  for _ in range(100):
    n_quiet = 0 if path.exists() else n_quiet + 1
    if n_quiet == 5:
      return
    with contextlib.suppress(OSError):
      _delete(path)
    time.sleep(0.1)


def _attempt(work: Callable[..., None], *args: Any) -> str:
  """What the disk has against it; "" where it is done."""
  try:
    work(*args)
  except OSError as error:
    return error.strerror or str(error)
  return ""
