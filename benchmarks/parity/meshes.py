"""Two steps on every mesh beside two steps on one device.

    python -m benchmarks.parity.meshes                    all cells; some 25 minutes
    python -m benchmarks.parity.meshes --filter=zigzag    those whose name has it

Eight virtual CPU devices, fp32. Of each cell (benchmarks/parity/cells.py) are
compared: the loss and whatever else is reported, the gradient norm, the updated
parameters (`LIMIT`) and the momentum (`LIMIT_OF_MOMENTUM`). Without a filter,
and where none failed, the table goes to benchmarks/parity/README.md. The last
line is JSON: cells, worst and whose, seconds, failed (names and why); exits with
1 where one failed.
"""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags

from benchmarks.parity import cases, cells, page
from benchmarks.parity.cells import Cell
from data import pipeline as batches
from data.batch import Batch
from models import families
from sharding import context, hlo, mesh, report, rules
from sharding.pipeline import Config as Pipeline
from train.core import (
  compiler,
  loop,
  optim,
  precision,
  schedule,
  setup,
  slices,
  staged,
  state,
  step,
)  # fmt: skip
from train.objectives import lm

# Of a process. Every program that XLA:CPU compiles keeps maps of memory, of which
# Linux gives a process 65,530: after some 110 cells there were no more.
_N_CELLS = 24
LIMIT = 1e-5  # of what is compared, relative
# Of the momentum, two gradients through up to ten layers. 1.2e-5 is the most of
# all cells but one, DeepSeek-V2's packed on expert=2 x stage=4: its second gradient
# is off by 1e-4 of small entries of the queries' weights (3e-7 of 3e-3); with other
# tokens by 7e-6 to 2e-5.
LIMIT_OF_MOMENTUM = 2e-4
# Of parameters and momentum, relative to the largest of a leaf; what is smaller
# than this counts as this: some gradients are zero but for rounding.
FLOOR = 1e-3

_FILTER = flags.DEFINE_string("filter", "", "runs the cells whose name has it")
_JOBS = flags.DEFINE_integer("jobs", 2, "processes")


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The last state, its metrics, and the compiled step."""

  state: state.TrainState
  metrics: dict[str, float]
  compiled: Any


def place(
  config: mesh.Config | None, devices: Sequence[jax.Device] | None = None
) -> rules.Layout:
  """The layout of a mesh; None: of one device."""
  if config is None:
    alone = mesh.make(mesh.Config(data=1), jax.devices()[:1])
    return rules.make(alone, "dp")
  return rules.make(mesh.make(config, devices), *config.settings)


def run(
  model: families.Config,
  batch: Batch,
  config: mesh.Config | None = None,
  *,
  n_steps: int = 2,
  n_micro: int = 1,
  optimizer: optim.Config | None = None,
  seed: int = 3,
) -> Outcome:
  """A few steps on one batch.

  Args:
    model: what is trained; begins at the same parameters on every mesh.
    batch: of all devices, its columns in order.
    config: of the mesh; None: one device.
    n_steps: how many.
    n_micro: parts of the batch, through the stages where there are any.
    optimizer: SGD with momentum where None: linear in the gradient, as Adam
      would blow up the noise of tiny ones.
    seed: of dropout.
  """
  go = _compiled(model, batch, config, n_micro, optimizer, seed)
  return go(batch, n_steps)


def _compiled(
  model: families.Config,
  batch: Batch,
  config: mesh.Config | None = None,
  n_micro: int = 1,
  optimizer: optim.Config | None = None,
  seed: int = 3,
) -> Callable[[Batch, int], Outcome]:
  """Steps from the same start, on any batch of this shape: see `run`."""
  layout, how = place(config), config and config.pipeline
  transform, update = _step(model, layout, n_micro, how, optimizer, seed)
  # Moved there, not made there: compiling `init` would take half the time.
  first = jax.device_get(state.start(cases.params(model), transform))
  places = state.shardings(model, transform, layout)

  def put(batch):
    columns = functools.partial(context.columns, layout)
    batch = jax.tree.map(lambda x: x[:, columns(x.shape[1])], batch)
    return jax.device_put(batch, layout.batch)

  start = jax.device_put(first, places)
  compiled, _ = loop.compile_step(update, start, put(batch), layout)

  def go(batch, n_steps):
    last, batch = jax.device_put(first, places), put(batch)
    for _ in range(n_steps):
      last, metrics, _ = compiled(last, batch)
    report.check(last, places, limit_bytes=0)
    return Outcome(last, loop.divide([metrics]), compiled)

  return go


def program(
  model: families.Config,
  config: mesh.Config,
  devices: Sequence[jax.Device] | None = None,
  *,
  n_micro: int = 1,
  chunk_tokens: int = 8,
) -> hlo.Program:
  """What a step does on devices that need not be here.

  Args:
    model: what is trained.
    config: of the mesh.
    devices: None: those that are here.
    n_micro: parts of the batch.
    chunk_tokens: of a row, whose logits are held at once.
  """
  layout = place(config, devices)
  transform, update = _step(
    model, layout, n_micro, config.pipeline, chunk_tokens=chunk_tokens
  )
  start = state.abstract(model, transform, layout)
  shape = batches.Config(size=cells.SIZE, length=cells.LENGTH)
  batch = setup.abstract_batch(shape, layout)
  told = compiler.options(model, layout.mesh)
  compiled, _ = loop.compile_step(update, start, batch, layout, told)
  return hlo.read(compiled.as_text(), layout.mesh)


def _step(
  model: families.Config,
  layout: rules.Layout,
  n_micro: int,
  how: Pipeline | None,
  optimizer: optim.Config | None = None,
  seed: int = 3,
  chunk_tokens: int = 8,
) -> tuple[optax.GradientTransformationExtraArgs, step.Step]:
  axes = families.axes(model)
  chosen = optimizer or optim.CONFIGS["sgd"](lr=0.3, momentum=0.9, clip=0.5)
  transform = optim.make(
    chosen, schedule.make(schedule.CONFIGS["constant"](), 10), axes
  )
  if model.dtype == "float16":
    transform = precision.wrap(transform, precision.Config())
  ahead_weight = 0.3 if getattr(model, "ahead", False) else 0.0
  loss = lm.Config(
    chunk_tokens=chunk_tokens, z_loss=1e-3, ahead_weight=ahead_weight
  )
  places = layout.shardings(axes, families.abstract(model), "grads")
  across = slices.axis(layout, n_micro, model, loss)
  within = layout.within(across) if across else layout
  return transform, step.make(
    staged.make(lm.make(loss, model), model, within, n_micro, how),
    transform,
    n_micro=n_micro if layout.n_stages == 1 else 1,
    seed=seed,
    axes=axes,
    grad_shardings=jax.tree.map(lambda place: place.spec, places),
    across=across,
  )


def differences(there: Outcome, here: Outcome) -> dict[str, float]:
  """How far two outcomes are apart, relative, by the name of what is compared.

  Raises:
    ValueError: they do not report the same.
  """
  if there.metrics.keys() != here.metrics.keys():
    raise ValueError(
      f"one reports {sorted(there.metrics)}, the other {sorted(here.metrics)}."
    )
  found = {
    name: abs(there.metrics[name] - value) / (abs(value) or 1.0)
    for name, value in here.metrics.items()
  }
  trace = functools.partial(optax.tree.get, key="trace")
  found["parameters"] = _apart(there.state.params, here.state.params)
  found["momentum"] = _apart(
    trace(there.state.opt_state), trace(here.state.opt_state)
  )
  return found


def _apart(there: Any, here: Any) -> float:
  def of_leaf(a, b):
    return np.abs(a - b).max() / max(np.abs(b).max(), FLOOR)

  pairs = jax.device_get((there, here))
  return float(max(jax.tree.leaves(jax.tree.map(of_leaf, *pairs))))


def outcome(cell: Cell) -> Outcome:
  """What a cell comes to."""
  rows = cells.batch(cell.is_packed)
  return run(cell.model, rows, cell.mesh, n_micro=cell.n_micro)


def compare(cell: Cell, there: Outcome | None = None) -> dict[str, float]:
  """The differences of a cell from the same parts on one device."""
  here = alone(cell.model, cell.is_packed, cell.n_micro)
  return differences(there or outcome(cell), here)


@functools.cache
def alone(model: families.Config, is_packed: bool, n_micro: int) -> Outcome:
  """What one device gets."""
  found = _alone(model, n_micro)(cells.batch(is_packed), 2)
  return dataclasses.replace(found, state=jax.device_get(found.state))


@functools.cache
def _alone(
  model: families.Config, n_micro: int
) -> Callable[[Batch, int], Outcome]:
  """Compiled once, for rows that are packed and that are not."""
  return _compiled(model, cells.batch(True), n_micro=n_micro)


def too_far(found: dict[str, float]) -> dict[str, float]:
  """Of differences, those beyond their limit."""
  limits = {"momentum": LIMIT_OF_MOMENTUM}
  return {k: v for k, v in found.items() if not v <= limits.get(k, LIMIT)}


def judge(cell: Cell) -> page.Result:
  """Compares a cell, and catches what goes wrong with it."""
  try:
    found = compare(cell)
  except Exception as error:
    why = f"{type(error).__name__}: {error}"
    return page.Result(cell, "", float("inf"), why[:500])
  failed = too_far(found)
  name = max(failed or found, key=found.__getitem__)
  why = ", ".join(f"{k} {v:.1e}" for k, v in failed.items())
  return page.Result(cell, name, found[name], why)


def prepare() -> None:
  """Of each process: eight devices, and programs that compile fast."""
  os.environ["XLA_FLAGS"] = " ".join(
    (
      f"--xla_force_host_platform_device_count={cells.N_DEVICES}",
      # Of a busy machine: see tests/conftest.py, also for the others.
      "--xla_cpu_collective_call_terminate_timeout_seconds=300",
      "--xla_cpu_enable_concurrency_optimized_scheduler=false",
      "--xla_cpu_use_fusion_emitters=false",
      "--xla_cpu_parallel_codegen_split_count=1",
    )
  )
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_disable_most_optimizations", True)


def _results(chosen: list[Cell]) -> Iterator[page.Result]:
  """As they come; families stay together, whose one device is run once."""
  n_cells = _N_CELLS * _JOBS.value
  for start in range(0, len(chosen), n_cells):
    with concurrent.futures.ProcessPoolExecutor(
      _JOBS.value, multiprocessing.get_context("spawn"), prepare
    ) as pool:
      part = chosen[start : start + n_cells]
      todo = [pool.submit(judge, cell) for cell in part]
      for done in concurrent.futures.as_completed(todo):
        yield done.result()


def main(argv: list[str]) -> None:
  """Runs the cells, prints as they come, writes the page."""
  del argv
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # of the processes: no XLA warnings
  chosen = [c for c in cells.every() if _FILTER.value in c.name]
  order = list(cells.FAMILIES).index
  chosen.sort(
    key=lambda c: (order(c.family), c.is_packed, c.n_micro, str(c.model))
  )
  start, results = time.monotonic(), []
  for result in _results(chosen):
    results.append(result)
    took = time.monotonic() - start
    left = round(took / len(results) * (len(chosen) - len(results)))
    print(
      f"{len(results):>4}/{len(chosen)}  left {left // 60}:{left % 60:02}"
      f"  {result.worst:.1e}  {result.cell.name}  {result.why}",
      flush=True,
    )
  failed = {r.cell.name: r.why for r in results if r.why}
  worst = max(results, key=lambda r: r.worst, default=None)
  if not _FILTER.value and not failed:
    page.write(results, cells.refused())
  print(
    json.dumps(
      {
        "cells": len(results),
        "worst": worst and worst.worst,
        "whose": worst and f"{worst.name} of {worst.cell.name}",
        "seconds": round(time.monotonic() - start),
        "failed": failed,
      }
    )
  )
  sys.exit(bool(failed) or not results)


if __name__ == "__main__":
  app.run(main)
