"""The one loop: step, log, evaluate, save. It knows no model and no task.

The step is compiled before the loop starts, so it is compiled once; metrics
stay on the devices until a line is due, verdicts until the next step runs.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from configs import fields
from configs.ranges import Count, Natural
from data.batch import Batch
from sharding import rules
from sharding.rules import Layout
from train.core import goodput, guard, hardware, optim, stopping
from train.core.checkpointing import Checkpoints, Progress
from train.core.diloco import Config as DiLoCo
from train.core.state import TrainState
from train.core.step import Metrics, Step
from train.core.track import Tracker

_STARVING = 0.2  # share of the time that waits for data: said once
_STARVED = (
  "the devices wait for data {:.0%} of the time: raise batch.n_ahead, put the "
  "store on a faster disk, or give each host more cores"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How long, and how often what."""

  steps: Count  # updates in all; a resumed run goes on to the same number
  n_micro: Count = 1  # parts that a batch is worked through in
  seed: Natural = 0  # of initialization, dropout and the order of the data
  log_every_steps: Count = 10
  # Replicas train alone, and meet once a round; None: at every step.
  diloco: DiLoCo | None = None
  eval_every_steps: Natural = 0  # 0: only after the last step
  stop_early: stopping.Config | None = None  # None: all steps are made
  # No step, evaluation, compile or save ended for so long: the stacks of all
  # threads, and exit. 0: never. Make it longer than an evaluation takes.
  hang_seconds: Natural = 1800

  def __post_init__(self):
    fields.check(self)


@runtime_checkable
class Stream(Protocol):
  """Batches without end, whose place can be kept."""

  def __next__(self) -> Batch:
    """The rows of this host of the next global batch."""
    ...

  def state(self) -> dict[str, Any]:
    """The place behind the last batch that was handed out."""
    ...

  def documents(self, state: dict[str, Any]) -> Any:
    """Names the documents of the batch that comes after a place."""
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


# To compilers of TPUs. What a loop over layers reads in bf16 alone they would
# carry in bf16, beside the weights: 0.4 GiB of 8.2 of Llama 2 7B on 16 v5e.
_OPTIONS = {"tpu": {"xla_jf_bf16_propagation": False}}


def compile_step(
  step: Step, state: TrainState, batch: Batch, layout: Layout
) -> tuple[Step, float]:
  """Compiles for these shapes and places; any others are refused from then on.

  Returns:
    The compiled step, which takes over the buffers of the state, and seconds.
  """
  start = time.perf_counter()
  places = jax.tree.map(lambda x: x.sharding, state)
  everywhere = layout.replicated  # what each host reads
  jitted = jax.jit(
    step, donate_argnums=0, out_shardings=(places, everywhere, everywhere)
  )
  with layout.use():
    options = _OPTIONS.get(rules.platform())
    compiled = jitted.lower(state, batch).compile(options)
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
  watch: guard.Watch,
  ledger: goodput.Ledger,
  loop_state: dict[str, Any],
  go_back: Callable[
    [int, dict[str, Any], str], tuple[TrainState, dict[str, Any]]
  ],
  is_preempted: Callable[[int], bool],
  join: Callable[[Any, Any, None], Any],
) -> bool:
  """Trains to the last step, or until the evaluations stop getting better.

  Args:
    config: how long.
    step: compiled, (state, batch) to (state, metrics, verdict).
    state: at any step; goes on from there.
    batches: this host's rows.
    put: rows of this host to the global batch on the devices.
    meter: what the rates are measured by.
    tracker: takes rows and lines.
    checkpoints: saves.
    evaluators: by name; called with the parameters to evaluate.
    watch: tells of steps that were not applied, and when to go back.
    ledger: books the seconds.
    loop_state: what a checkpoint keeps of this loop, plain data.
    go_back: (step, loop_state, why) to an older state and its loop_state.
    is_preempted: whether to stop before the next step, the same on all hosts.
    join: (trained, frozen, no key) to the parameters to evaluate.

  Returns:
    Whether the run is over; if not, it was preempted. Either way its last state
    is its last checkpoint.
  """
  n_done = saved = int(state.step)
  pending: list[Metrics] = []
  numbers: dict[str, float] = {}
  pace = _Pace(ledger, meter)
  watch.begin(loop_state["n_bad_in_row"])
  is_starved = False

  def is_due(every: int) -> bool:
    return bool(every) and n_done % every == 0

  def save():
    loop_state["n_bad_in_row"] = watch.n_in_row  # later lives count on
    with ledger.spend("checkpoint"):
      progress = Progress(batches.state(), loop_state)
      checkpoints.save(state, progress, numbers)

  def evaluate() -> dict[str, float]:
    found: dict[str, float] = {}
    with ledger.spend("evaluate"):
      params = optim.eval_params(state.opt_state, state.params)
      params = join(params, state.frozen, None)
      for evaluator in evaluators.values():
        found.update(evaluator(params, n_done))
    tracker.log(n_done, "eval", found)
    if found:
      tracker.say(f"{n_done:>6}  " + _line(found))
    return found

  def is_stopped() -> bool:
    return config.stop_early is not None and stopping.is_over(
      config.stop_early, loop_state["stopping"]
    )

  if is_stopped():
    tracker.say("nothing to do: the run has stopped early")
  elif n_done >= config.steps:
    tracker.say(f"nothing to do: {n_done} of {config.steps} steps are made")

  while n_done < config.steps and not is_stopped():
    if is_preempted(n_done):
      break
    place = batches.state()
    with ledger.spend("wait"):
      rows = next(batches)
    with ledger.spend("step"):
      state, metrics, verdict = step(state, put(rows))
      n_done += 1
      loop_state["n_batches"] += 1
      pending.append(metrics)
      is_last = n_done == config.steps
      is_line = is_last or n_done == 1 or is_due(config.log_every_steps)
      is_eval = is_last or is_due(config.eval_every_steps)
      is_save = is_last or is_due(checkpoints.every_steps)
      ledger.lose(watch.read())  # the step before, while this one runs
      name = functools.partial(batches.documents, place)
      watch.add(n_done, verdict, rows, name)
      if is_line or is_eval or is_save:
        ledger.lose(watch.read())
      found = divide(pending) if is_line else {}
    ledger.reach(n_done)

    if watch.must_go_back:
      n_bad, came = watch.n_in_row, n_done
      tracker.say(f"going back, after {n_bad} bad steps in a row")
      state, loop_state = go_back(came, loop_state, watch.why)
      n_done = saved = int(state.step)
      ledger.lose(came - n_done - n_bad)  # the bad ones are lost already
      watch.begin(loop_state["n_bad_in_row"])
      tracker.rewind(n_done)
      pending = []
      pace.lap(1)
      continue
    if is_line:
      row = {**found, "lr": meter.lr(n_done - 1), **pace.lap(len(pending))}
      numbers.update(found)
      tracker.log(n_done, "train", row)
      tracker.say(_progress(n_done, config.steps, row))
      pending = []
      if row["data_share"] > _STARVING and not is_starved:
        is_starved = True
        tracker.say(_STARVED.format(row["data_share"]))
    if is_eval:
      found = evaluate()
      numbers.update(found)
      if config.stop_early:
        loop_state["stopping"] = stopping.advance(
          config.stop_early, loop_state["stopping"], found
        )
    if is_save or is_stopped():
      save()
      saved = n_done
  if saved < n_done:
    save()
  is_over = n_done >= config.steps or is_stopped()
  with ledger.spend("checkpoint"):
    # A preempted run goes on from an older step where the last was not saved.
    checkpoints.finish() if is_over else checkpoints.wait()
  return is_over


def divide(steps: list[Metrics]) -> dict[str, float]:
  """Sums over weights, over several steps, once and on the host.

  What has no weight, because no step was applied, is left out.
  """
  on_host = jax.device_get(steps)
  sums = {
    name: [sum(float(m[name][i]) for m in on_host) for i in (0, 1)]
    for name in on_host[0]
  }
  return {
    name: value / weight for name, (value, weight) in sums.items() if weight
  }


class _Pace:
  """Rates between two lines, from the seconds that steps and data took."""

  def __init__(self, ledger: goodput.Ledger, meter: Meter):
    self._ledger, self._meter = ledger, meter
    self._before = dict(ledger.seconds)

  def lap(self, n_steps: int) -> dict[str, float]:
    """Rates since the last lap; the metrics are on the host by now."""
    before, self._before = self._before, dict(self._ledger.seconds)
    waited = self._before["wait"] - before["wait"]
    seconds = self._before["step"] - before["step"] + waited
    rate = n_steps * self._meter.tokens_per_step / seconds
    row = {
      "step_seconds": seconds / n_steps,
      "data_share": waited / seconds,
      "tokens_per_second": rate,
      "memory_bytes": float(hardware.memory_bytes()),
    }
    if self._meter.peak_flops:
      flops = rate * self._meter.flops_per_token
      row["mfu"] = flops / self._meter.peak_flops
    return row


def _progress(n_done: int, n_steps: int, row: dict[str, float]) -> str:
  nan = float("nan")  # where no step since the last line was applied
  left = round(row["step_seconds"] * (n_steps - n_done))
  dropped = f"  dropped {row['dropped']:.1%}" if row.get("dropped") else ""
  mfu = f"MFU {row['mfu']:6.1%}" if "mfu" in row else "MFU unknown"
  return (
    f"{n_done:>6}/{n_steps} {n_done / n_steps:4.0%}"
    f"  loss {row.get('loss', nan):.4f}  grad {row.get('grad_norm', nan):6.3f}"
    f"{dropped}  lr {row['lr']:.2e}  {row['step_seconds'] * 1e3:6.0f} ms"
    f"  data {row['data_share']:4.1%}"
    f"  {row['tokens_per_second']:9,.0f} tok/s  {mfu}"
    f"  {row['memory_bytes'] / 2**30:.1f} GiB"
    f"  left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
  )


def _line(values: Mapping[str, float]) -> str:
  return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
