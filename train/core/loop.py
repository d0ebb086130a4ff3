"""The one loop: step, log, evaluate, save. It knows no model and no task.

The step is compiled before the loop starts, so it is compiled once; metrics
stay on the devices until a line is due.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from data.batch import Batch
from sharding.rules import Layout
from train.core import hardware, optim, stopping
from train.core.checkpointing import Checkpoints, Progress
from train.core.state import TrainState
from train.core.step import Metrics, Step
from train.core.track import Tracker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How long, and how often what."""

  steps: int  # updates in all; a resumed run goes on to the same number
  n_micro: int = 1  # parts that a batch is worked through in
  seed: int = 0  # of initialization, dropout and the order of the data
  log_every_steps: int = 10
  eval_every_steps: int = 0  # 0: only after the last step
  stop_early: stopping.Config | None = None  # None: all steps are made

  def __post_init__(self):
    for name in ("steps", "n_micro", "log_every_steps"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be positive.")
    if self.eval_every_steps < 0:
      raise ValueError(
        f"eval_every_steps={self.eval_every_steps} must not be negative."
      )


@runtime_checkable
class Stream(Protocol):
  """Batches without end, whose place can be kept."""

  seconds_waited: float

  def __next__(self) -> Batch:
    """The rows of this host of the next global batch."""
    ...

  def state(self) -> dict[str, Any]:
    """The place behind the last batch that was handed out."""
    ...


# A name and (params, step) -> numbers; what it prints or draws is its own.
Evaluator = Callable[[Any, int], Mapping[str, float]]


@dataclasses.dataclass
class Meter:
  """What turns steps into rates: set once for a run.

  Attributes:
    tokens_per_step: of the global batch, padding too.
    flops_per_token: of the model, forward and backward.
    peak_flops: of all devices; None where unknown.
    lr: step -> learning rate.
  """

  tokens_per_step: int
  flops_per_token: float
  peak_flops: float | None
  lr: Callable[[int], float]


def compile_step(
  step: Step, state: TrainState, batch: Batch, layout: Layout
) -> tuple[Step, float]:
  """Compiles for these shapes and places; any others are refused from then on.

  Returns:
    The compiled step, which takes over the buffers of the state, and seconds.
  """
  start = time.perf_counter()
  places = jax.tree.map(lambda x: x.sharding, state)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
  with layout.use():
    compiled = jitted.lower(state, batch).compile()
  return compiled, time.perf_counter() - start


def run(
  config: Config,
  step: Step,
  state: TrainState,
  batches: Stream,
  *,
  put: Callable[[Batch], Batch],
  meter: Meter,
  tracker: Tracker,
  checkpoints: Checkpoints,
  evaluators: Mapping[str, Evaluator],
  loop_state: dict[str, Any] | None = None,
) -> TrainState:
  """Trains to the last step, or until the evaluations stop getting better.

  Args:
    config: how long.
    step: compiled, (state, batch) to (state, metrics).
    state: at any step; goes on from there.
    batches: this host's rows.
    put: rows of this host to the global batch on the devices.
    meter: what the rates are measured by.
    tracker: takes rows and lines.
    checkpoints: saves.
    evaluators: by name; called with the parameters to evaluate.
    loop_state: what a checkpoint kept of this loop.

  Returns:
    The last state, which is also the last checkpoint.
  """
  n_done = int(state.step)
  loop_state = dict(loop_state or {"stopping": stopping.start()})
  pending: list[Metrics] = []
  numbers: dict[str, float] = {}
  clock = _Clock(batches)
  saved = n_done

  def is_due(every: int) -> bool:
    return bool(every) and n_done % every == 0

  def save():
    progress = Progress(batches.state(), loop_state)
    checkpoints.save(state, progress, numbers)

  def evaluate() -> dict[str, float]:
    params = optim.eval_params(state.opt_state, state.params)
    found: dict[str, float] = {}
    for evaluator in evaluators.values():
      found.update(evaluator(params, n_done))
    tracker.log(n_done, "eval", found)
    if found:
      tracker.say(f"{n_done:>6}  " + _line(found))
    return found

  if config.stop_early and stopping.is_over(
    config.stop_early, loop_state["stopping"]
  ):
    tracker.say("nothing to do: the run has stopped early")
    return state
  if n_done >= config.steps:
    tracker.say(f"nothing to do: {n_done} of {config.steps} steps are made")
  while n_done < config.steps:
    batch = put(next(batches))
    state, metrics = step(state, batch)
    n_done += 1
    is_last = n_done == config.steps
    pending.append(metrics)
    if is_last or n_done == 1 or is_due(config.log_every_steps):
      found = divide(pending)
      rates = clock.lap(len(pending), meter)
      row = {**found, "lr": meter.lr(n_done - 1), **rates}
      numbers.update(found)
      tracker.log(n_done, "train", row)
      tracker.say(_progress(n_done, config.steps, row))
      pending = []
    if is_last or is_due(config.eval_every_steps):
      found = evaluate()
      numbers.update(found)
      if config.stop_early:
        loop_state["stopping"] = stopping.advance(
          config.stop_early, loop_state["stopping"], found
        )
        is_last |= stopping.is_over(config.stop_early, loop_state["stopping"])
      clock.restart()
    if is_last or is_due(checkpoints.every_steps):
      save()
      saved = n_done
      clock.restart()
    if is_last:
      break
  if saved < n_done:
    save()
  checkpoints.wait()
  return state


def divide(steps: list[Metrics]) -> dict[str, float]:
  """Sums over weights, over several steps, once and on the host."""
  on_host = jax.device_get(steps)
  return {
    name: float(
      sum(float(m[name][0]) for m in on_host)
      / max(sum(float(m[name][1]) for m in on_host), 1e-9)
    )
    for name in on_host[0]
  }


class _Clock:
  """Seconds of steps and of waiting for data between two lines."""

  def __init__(self, batches: Stream):
    self._batches = batches
    self.restart()

  def restart(self) -> None:
    """Leaves out what went on since the last line."""
    self._start = time.perf_counter()
    self._waited = self._batches.seconds_waited

  def lap(self, n_steps: int, meter: Meter) -> dict[str, float]:
    """Rates since the last lap; the metrics are on the host by now."""
    seconds = time.perf_counter() - self._start
    waited = self._batches.seconds_waited - self._waited
    self.restart()
    rate = n_steps * meter.tokens_per_step / seconds
    row = {
      "step_seconds": seconds / n_steps,
      "data_share": waited / seconds,
      "tokens_per_second": rate,
      "memory_bytes": float(hardware.memory_bytes()),
    }
    if meter.peak_flops:
      row["mfu"] = rate * meter.flops_per_token / meter.peak_flops
    return row


def _progress(n_done: int, n_steps: int, row: dict[str, float]) -> str:
  left = round(row["step_seconds"] * (n_steps - n_done))
  mfu = f"MFU {row['mfu']:6.1%}" if "mfu" in row else "MFU unknown"
  return (
    f"{n_done:>6}/{n_steps} {n_done / n_steps:4.0%}"
    f"  loss {row['loss']:.4f}  grad {row['grad_norm']:6.3f}"
    f"  lr {row['lr']:.2e}  {row['step_seconds'] * 1e3:6.0f} ms"
    f"  data {row['data_share']:4.1%}"
    f"  {row['tokens_per_second']:9,.0f} tok/s  {mfu}"
    f"  {row['memory_bytes'] / 2**30:.1f} GiB"
    f"  left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
  )


def _line(values: Mapping[str, float]) -> str:
  return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
