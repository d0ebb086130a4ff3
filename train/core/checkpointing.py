"""Saves a run while it goes on, and finds the place to go on from.

Arrays are copied off the devices before `save` returns and written behind the
running step. A checkpoint counts once its manifest is written, last of all.
"""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from configs import fields
from configs.ranges import Count, Natural
from data import pipeline
from models import checkpoint
from train.core import optim
from train.core.state import TrainState

_NONE, _NONE_WHOLE = -1, -2  # in place of a step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How often, and how many are kept."""

  every_steps: Natural = 0  # 0: only the last step, which is always saved
  keep_last: Count = 2  # newest checkpoints that stay

  def __post_init__(self):
    fields.check(self)


@dataclasses.dataclass(frozen=True)
class Progress:
  """What a run needs beside its arrays to go on as if nothing had happened."""

  data: pipeline.State  # of the rows of this host; of all rows when restored
  loop: dict[str, Any]  # tokens seen, early stopping


class Checkpoints:
  """The checkpoints of one run, in workdir/checkpoints.

  Args:
    workdir: of the run.
    config: how often, how many.
    settings: the resolved config of the run, plain data.
    copy_tokenizer: writes tokenizer.* into a folder.
    parent: the checkpoint that the run began from, if any.
  """

  def __init__(
    self,
    workdir: epath.Path,
    config: Config,
    settings: dict[str, Any],
    copy_tokenizer: Callable[[epath.Path], None],
    parent: str | None = None,
  ):
    self.every_steps = config.every_steps
    self._folder = workdir / "checkpoints"
    self._workdir = workdir
    self._config = config
    self._settings = settings
    self._copy_tokenizer = copy_tokenizer
    self._parent = parent
    self._is_first = jax.process_index() == 0
    self._writer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler("params", "state")
    )
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._sealed: concurrent.futures.Future | None = None
    if self._is_first:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._sweep()

  def save(
    self, state: TrainState, progress: Progress, metrics: dict[str, float]
  ) -> None:
    """Starts a save; returns when the devices may go on."""
    self.wait()
    step = int(state.step)
    path, staged = self._folder / str(step), self._folder / f"{step}.data"
    staged.mkdir(parents=True, exist_ok=True)
    process = jax.process_index()
    (staged / f"{process}.json").write_text(
      json.dumps(dataclasses.asdict(progress))
    )
    # params/ is what all others use; an average is not what goes on training.
    published = optim.eval_params(state.opt_state, state.params)
    self._writer.save(
      checkpoint.absolute(path),
      ocp.args.Composite(
        params=ocp.args.PyTreeSave(published),
        state=ocp.args.PyTreeSave(_beside_params(state)),
      ),
      force=True,
    )
    card = self._card(step, metrics)
    self._sealed = self._thread.submit(self._seal, path, staged, card)

  def wait(self) -> None:
    """Blocks until the save that is under way is on disk; raises its error."""
    if self._sealed is not None:
      self._sealed.result()
      self._sealed = None

  def close(self) -> None:
    """Waits, and ends the threads."""
    self.wait()
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
      wanted: shapes, types and shardings, on whatever mesh this run has.
      say: takes a line for the person who watches.
    """
    # One process reads for digests; on a pod the others only follow.
    step = self._newest_whole(say) if self._is_first else 0
    step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == _NONE:
      return None
    if step == _NONE_WHOLE:
      raise ValueError(
        f"no checkpoint in {self._folder} verifies: mend one from a backup, "
        "or use another --workdir."
      )
    return _read(self._folder / str(step), wanted)

  def _newest_whole(self, say: Callable[[str], None]) -> int:
    found = checkpoint.steps(self._workdir)
    for step in reversed(found):
      path = self._folder / str(step)
      problem = checkpoint.verify(path)
      if problem is None:
        say(f"resuming from {path}: the newest of {len(found)} that verifies")
        return step
      say(f"passing over {path}: {problem}")
    return _NONE_WHOLE if found else _NONE

  def _seal(self, path: epath.Path, staged: epath.Path, card: dict) -> None:
    self._writer.wait_until_finished()
    if not self._is_first:
      return
    staged.rename(path / "data")
    (path / "config.json").write_text(json.dumps(self._settings, indent=1))
    (path / "card.json").write_text(json.dumps(card, indent=1))
    self._copy_tokenizer(path)
    checkpoint.seal(path)
    for step in checkpoint.steps(self._workdir)[: -self._config.keep_last]:
      _delete(self._folder / str(step))

  def _sweep(self) -> None:
    """Removes what an interrupted save left behind."""
    for path in self._folder.iterdir():
      if not (path / checkpoint.MANIFEST).exists():
        path.rmtree()

  def _card(self, step: int, metrics: dict[str, float]) -> dict[str, Any]:
    return {
      "step": step,
      "parent": self._parent,
      "command": " ".join(sys.orig_argv),
      "git": _revision(),
      "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
      "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
      "jax": jax.__version__,
      "metrics": metrics,
    }


def _read(path: epath.Path, wanted: TrainState) -> tuple[TrainState, Progress]:
  rest = checkpoint.restore(path / "state", _beside_params(wanted))
  if "params" not in rest:
    rest["params"] = checkpoint.restore(path / "params", wanted.params)
  parts = [
    json.loads(file.read_text()) for file in sorted((path / "data").iterdir())
  ]
  data = {row: s for part in parts for row, s in part["data"].items()}
  progress = Progress(data, parts[0]["loop"])
  return TrainState(**rest), progress


def _beside_params(state: TrainState) -> dict[str, Any]:
  rest = {"step": state.step, "opt_state": state.opt_state}
  rest["guard"] = state.guard
  if optim.is_averaged(state.opt_state):
    rest["params"] = state.params
  return rest


def _delete(path: epath.Path) -> None:
  (path / checkpoint.MANIFEST).unlink()  # first: half of one is none
  path.rmtree()


def _revision() -> str | None:
  """The commit of the code that runs, with a + where it was changed since."""
  root = os.path.dirname(os.path.abspath(__file__))
  ask = ["git", "-C", root, "describe", "--always", "--dirty=+", "--abbrev=12"]
  try:
    done = subprocess.run(ask, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() or None
