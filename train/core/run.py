"""What every training entrypoint shares: from an objective to a checkpoint.

with run.opened(workdir) as session:
  s = ...  # devices, data, model
  return run.train(session, config, s, objective, SECTIONS)
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from configs import door
from data import pipeline
from models import base, durable, families, flops
from sharding import hosts, report
from sharding.rules import Layout
from train.core import (
  checkpointing,
  compiler,
  diloco,
  goodput,
  guard,
  hardware,
  lineage,
  lock,
  loop,
  moments,
  optim,
  parts,
  precision,
  preemption,
  rollback,
  schedule,
  setup,
  slices,
  staged,
  state,
  step,
  stopping,
  summary,
  track,
  watchdog,
)
from train.core.state import TrainState
from train.evaluators import suite


@dataclasses.dataclass(frozen=True)
class Session:
  """One life of a run: it alone writes to the workdir."""

  workdir: epath.Path
  ledger: goodput.Ledger
  preemption: preemption.Preemption
  say: Callable[[str], None]


@contextlib.contextmanager
def opened(workdir: epath.Path) -> Iterator[Session]:
  """Joins the hosts, takes the workdir, heeds signals, books every second.

  Raises:
    ValueError: another job holds the workdir.
  """
  hosts.initialize()
  is_first = jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    stack.enter_context(lock.hold(workdir))
    asked = stack.enter_context(preemption.Preemption())
    ledger = goodput.Ledger(workdir if is_first else None)
    yield Session(workdir, ledger, asked, track.terminal().say)
    ledger.write()
    if is_first:
      print(goodput.describe(goodput.account(goodput.lives(workdir))))


def train(
  session: Session,
  config: door.Config,
  s: setup.Setup,
  objective: step.Objective,
  sections: Mapping[str, Any],
) -> int:
  """Resumes or begins, and trains.

  Args:
    session: of this process.
    config: with the sections of `train.pretrain`.
    s: devices, data and model.
    objective: what is minimised.
    sections: of the entrypoint.

  Returns:
    The exit code: 0, or that of a preemption.
  """
  workdir, ledger, say = session.workdir, session.ledger, session.say
  settings = setup.settle(config, workdir, sections, say)
  optimizer, update = make_step(config, s.model, s.layout, objective)
  split = parts.make(config)
  _tell_of_moments(config, split, say)
  batches = s.batches(config.data.weights, config.train.seed)
  parent = base.parent(_base(config), workdir)
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      checkpointing.Checkpoints(
        workdir,
        config.checkpoint,
        settings,
        s.store.tokenizer.save,
        parent,
        say,
      )
    )
    source = _Source(session, config, s, optimizer, checkpoints)
    with ledger.spend("restore"):
      first, loop_state = source.begin(batches)
    ledger.begin(int(first.step))
    lineage.record(workdir, config, s.store, parent, int(first.step))
    # Not before: to prepare text or to read a checkpoint may take hours.
    dog = stack.enter_context(watchdog.Watchdog(config.train.hang_seconds))
    ledger.on_turn = dog.beat
    with ledger.spend("compile"):
      compiled, seconds = _compile(update, first, s)
    say(f"{s}{_stages(config, s)}; compiled in {seconds:.1f} s")
    stream = stack.enter_context(
      pipeline.Prefetch(batches, config.batch.n_ahead)
    )
    tracker = stack.enter_context(
      track.open_tracker(workdir, int(first.step), config.log, settings)
    )
    is_over = loop.run(
      config.train,
      compiled,
      first,
      stream,
      put=s.put,
      meter=_meter(config, s),
      tracker=tracker,
      checkpoints=checkpoints,
      evaluators=suite.make(
        config.eval.during, config.eval, config.generate, s, tracker, objective
      ),
      watch=guard.Watch(config.guard, first.params, workdir, say),
      ledger=ledger,
      loop_state=loop_state,
      go_back=source.go_back,
      is_preempted=session.preemption.is_asked,
      join=split.join,
    )
  if not is_over:
    say("preempted, and saved: start again to go on")
  elif config.log.report and jax.process_index() == 0:
    _sum_up(session)
  return 0 if is_over else preemption.EXIT_CODE


def _stages(config: door.Config, s: setup.Setup) -> str:
  n_micro, pipeline = config.train.n_micro, config.mesh.pipeline
  return staged.describe(s.model, s.layout, n_micro, pipeline)


def _compile(
  update: step.Step, first: state.TrainState, s: setup.Setup
) -> tuple[step.Step, float]:
  batch = setup.abstract_batch(s.batch, s.layout)
  told = compiler.options(s.model, s.layout.mesh)
  return loop.compile_step(update, first, batch, s.layout, told)


def _sum_up(session: Session) -> None:
  session.ledger.write()
  try:
    session.say(f"report: {summary.write(session.workdir)}")
  except (OSError, ValueError) as error:  # a run does not end for its report
    session.say(f"no report: {error}")


def _base(config: door.Config) -> str | None:
  return config.base.path if "base" in config.sections else None


def _tell_of_moments(
  config: door.Config, split: parts.Parts, say: Callable[[str], None]
) -> None:
  if getattr(config.optim, "moments", None) == "int8":
    if whole := moments.whole(split.axes, split.shapes):
      say(
        f"moments in fp32 all the same, for want of blocks: {', '.join(whole)}"
      )


def make_step(
  config: door.Config,
  model: families.Config,
  layout: Layout,
  objective: step.Objective,
) -> tuple[state.Optimizer, step.Step]:
  """The optimizer and the step that a config asks for.

  Args:
    config: with the sections mesh, objective, optim, schedule, train, guard.
    model: what is trained.
    layout: where it lives.
    objective: what is minimised.
  """
  split = parts.make(config)
  axes = split.axes
  factor = schedule.make(config.schedule, config.train.steps)
  optimizer = optim.make(config.optim, factor, axes, split.speeds)
  if model.dtype == "float16":
    optimizer = precision.wrap(optimizer, precision.Config())
  places = layout.shardings(axes, split.shapes, "grads")
  places = jax.tree.map(lambda place: place.spec, places)
  n_micro, how = config.train.n_micro, config.mesh.pipeline
  rounds, seed = config.train.diloco, config.train.seed
  apart, adapter = diloco.AXIS, config.sections.get("adapter")
  if rounds is None:
    apart = slices.axis(layout, n_micro, model, config.objective, adapter)
  within = layout.within(apart) if apart else layout
  make = functools.partial(
    step.make,
    staged.make(objective, model, within, n_micro, how),
    optimizer,
    n_micro=n_micro if layout.n_stages == 1 else 1,
    axes=axes,
    grad_shardings=places,
    across=apart if rounds is None else None,
    judge=config.guard,
    join=split.join,
  )
  if rounds is None:
    return optimizer, make(seed=seed)
  n_replicas = layout.mesh.shape[diloco.AXIS]
  update = diloco.make(rounds, make, n_replicas, seed)
  return state.Copies(optimizer, n_replicas), update


def _meter(config: door.Config, s: setup.Setup) -> loop.Meter:
  factor = schedule.make(config.schedule, config.train.steps)
  return loop.Meter(
    tokens_per_step=config.batch.size * config.batch.length,
    flops_per_token=flops.train_per_token(
      s.model, config.batch.length, config.batch.source_length
    ),
    peak_flops=hardware.peak_flops(s.model.dtype),
    lr=lambda i: float(factor(i)) * getattr(config.optim, "lr", 1.0),
  )


class _Source:
  """Gives the state to go on from: the newest checkpoint's, or the first."""

  def __init__(self, session, config, s, optimizer, checkpoints):
    self._session, self._config, self._setup = session, config, s
    self._optimizer, self._checkpoints = optimizer, checkpoints
    self._parts = parts.make(config)
    self._places = state.abstract(self._parts, optimizer, s.layout)

  def begin(
    self, batches: pipeline.TrainBatches
  ) -> tuple[TrainState, dict[str, Any]]:
    """Of a life: sets the place in the data too; what the loop kept."""
    first, progress = self._find()
    loop_state = {
      "stopping": stopping.start(),
      "n_batches": 0,
      "n_bad_in_row": 0,
      "n_gone_back": 0,
    }
    if progress:
      batches.restore(progress.data)
      loop_state = dict(progress.loop)
    workdir = self._session.workdir
    if kept := rollback.kept(workdir, int(first.step)):
      for _ in range(loop_state["n_batches"], kept["n_batches"]):
        next(batches)
      loop_state = kept
    if jax.process_index() == 0:
      for name, text in (
        ("sharding.txt", report.table(first) + "\n"),
        ("decay.txt", optim.listing(self._config.optim, self._parts.axes)),
      ):
        durable.write_text(workdir / name, text)
    return first, loop_state

  def go_back(
    self, came: int, loop_state: dict[str, Any], why: str
  ) -> tuple[TrainState, dict[str, Any]]:
    """The same after `came` steps of which the last were bad; the data goes on.

    Raises:
      ValueError: it went back often enough.
    """
    n, most = loop_state["n_gone_back"], self._config.guard.max_rollbacks
    workdir = self._session.workdir
    if n >= most:
      raise ValueError(
        f"the run went back {n} times and comes to bad steps again: {why}. Look "
        f"at {workdir}/bad; lower optim.lr, raise guard.spike_sigmas, or remove "
        "the newest checkpoint. Raise guard.max_rollbacks to go on all the same."
      )
    self._checkpoints.wait()
    first, progress = self._find()
    loop_state = {
      **(progress.loop if progress else {"stopping": stopping.start()}),
      "n_batches": loop_state["n_batches"],
      "n_bad_in_row": 0,
      "n_gone_back": n + 1,
    }
    rollback.record(workdir, came, int(first.step), loop_state, why)
    return first, loop_state

  def _find(self) -> tuple[TrainState, checkpointing.Progress | None]:
    found = self._checkpoints.restore(self._places, self._session.say)
    if found is None:
      first, progress = self._first(), None
    else:
      first, progress = found
      if first.frozen and first.frozen.base:
        _, frozen = self._read()
        first = first.replace(frozen=first.frozen.replace(base=frozen.base))
    report.check(first, jax.tree.map(lambda x: x.sharding, self._places))
    return first, progress

  def _first(self) -> TrainState:
    s, c = self._setup, self._config
    if "base" in c.sections:
      read = self._read()
      return state.begin(self._parts, self._optimizer, s.layout, *read)
    width = c.optim.mup_width
    return state.init(s.model, self._optimizer, s.layout, c.train.seed, width)

  def _read(self) -> tuple[Any, Any]:
    """The two parts, as the base begins them."""
    s, c, places = self._setup, self._config, self._places
    seed, say = c.train.seed, self._session.say
    path = epath.Path(c.base.path)
    params = base.read(path, s.model, s.layout, seed, say)
    shards = jax.tree.map(lambda x: x.sharding, (places.params, places.frozen))
    split = jax.jit(self._parts.split, out_shardings=shards)
    return split(params, jax.random.key(seed))
