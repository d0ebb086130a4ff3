"""Poisons the steps of a run: is each one caught, named, and kept out?

    python -m benchmarks.faults.nan --n 200

A run on real rows goes on; now and then a step gets NaN or infinity in one
entry of a parameter, of a gradient, of the batch's weights or in its loss, or
it gets rows of noise, whose loss is a spike. It is caught if the verdict is
bad, named if the reason says what was done and to which leaf, and applied if
any bit of parameters, optimizer or history differs behind it.

The last line is JSON: injections, caught, named, applied (must be 0),
false_alarms (among n_good other steps), first_loss, last_loss.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import numpy as jnp

from benchmarks.faults import dose, runs
from data import pipeline
from data.batch import Batch
from models import families
from train.core import guard, loop, optim, schedule, setup, state, step
from train.objectives import lm

N_FIRST = 150  # good steps ahead of the first: a spike needs a history
N_BETWEEN = 3  # good steps behind each
VALUES = np.array([np.nan, np.inf, -np.inf], np.float32)
# Targets that no text has: they tell the step what to spoil.
SPOIL_GRAD, SPOIL_LOSS = 262, 263


def poison(n: int, folder: epath.Path) -> dict[str, Any]:
  """Injects n faults into one run; returns the figures."""
  config = runs.page(folder)
  s = setup.begin(config, folder)
  factor = schedule.make(config.schedule, 1 << 20)
  optimizer = optim.make(config.optim, factor, families.axes(s.model))
  objective = _spoilt(lm.make(config.objective, s.model))
  now = state.init(s.model, optimizer, s.layout, seed=0)
  update, _ = loop.compile_step(
    step.make(objective, optimizer, judge=config.guard),
    now,
    setup.abstract_batch(s.batch, s.layout),
    s.layout,
  )
  names = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(now.params)
  ]
  rows = pipeline.train_batches(config.batch, s.store.train, (), s.rows, 0)
  losses, found = [], dict(injections=n, caught=0, named=0, applied=0)
  false_alarms, n_good = 0, 0

  def good(n_steps: int) -> None:
    nonlocal now, false_alarms, n_good
    for _ in range(n_steps):
      now, metrics, verdict = update(now, s.put(next(rows)))
      false_alarms += not bool(verdict.is_good)
      losses.append(loop.divide([metrics]).get("loss", np.nan))
      n_good += 1

  good(N_FIRST)
  faults = _faults(np.random.default_rng(0), names)
  for _ in range(n):
    expected, spoil_state, spoil_rows = next(faults)
    kept = jax.device_get(now)
    bad = spoil_state(kept)
    after, _, verdict = update(
      jax.device_put(bad, jax.tree.map(lambda x: x.sharding, now)),
      s.put(spoil_rows(next(rows))),
    )
    verdict, after = jax.device_get((verdict, after))
    found["caught"] += not verdict.is_good
    if not verdict.is_good:
      found["named"] += expected in guard.reason(verdict, names)
    found["applied"] += not _same(bad.replace(step=after.step), after)
    places = jax.tree.map(lambda x: x.sharding, now)
    now = jax.device_put(kept, places)
    good(N_BETWEEN)
  return found | {
    "false_alarms": false_alarms,
    "n_good": n_good,
    "first_loss": round(losses[0], 4),
    "last_loss": round(float(np.mean(losses[-10:])), 4),
  }


def _faults(
  rng: np.random.Generator, names: list[str]
) -> Iterator[tuple[str, Callable, Callable]]:
  """Yields (what the reason must say, state -> state, rows -> rows)."""
  while True:
    leaf, value = int(rng.integers(len(names))), int(rng.integers(3))
    place = float(rng.random())
    put = functools.partial(_put, place=place, value=VALUES[value])

    def in_params(kept, leaf=leaf, put=put):
      leaves, tree = jax.tree.flatten(kept.params)
      leaves[leaf] = put(leaves[leaf])
      return kept.replace(params=jax.tree.unflatten(tree, leaves))

    def marked(batch, mark, leaf=leaf, value=value):
      targets = batch.targets.copy()
      targets[0, :3] = mark, leaf, value
      return batch.replace(targets=targets)

    def in_weights(batch, put=put):
      return batch.replace(weights=put(batch.weights))

    def noise(batch):
      shape = batch.tokens.shape
      ids = rng.integers(3, 259, (2, *shape)).astype(np.int32)
      return batch.replace(tokens=ids[0], targets=ids[1])

    yield f"parameter {names[leaf]} is not", in_params, _same_as_it_was
    in_grad = functools.partial(marked, mark=SPOIL_GRAD)
    yield f"the gradient of {names[leaf]} is not", _same_as_it_was, in_grad
    yield "a weight of the batch is not", _same_as_it_was, in_weights
    in_loss = functools.partial(marked, mark=SPOIL_LOSS)
    yield "loss is ", _same_as_it_was, in_loss
    yield "is a spike", _same_as_it_was, noise


def _same_as_it_was(x: Any) -> Any:
  return x


def _put(array: np.ndarray, place: float, value: np.float32) -> np.ndarray:
  """The array with one entry replaced."""
  array = np.array(array)
  array.flat[int(place * array.size)] = value
  return array


def _spoilt(objective: step.Objective) -> step.Objective:
  """The objective, which spoils what the first targets of a batch say."""

  def spoilt(params: Any, batch: Batch, key: Any):
    mark, leaf, value = batch.targets[0, :3]
    poison = jnp.asarray(VALUES)[jnp.clip(value, 0, 2)]
    leaves, tree = jax.tree.flatten(params)
    leaves = [
      _tap(x, jnp.where((mark == SPOIL_GRAD) & (leaf == i), poison, 0.0))
      for i, x in enumerate(leaves)
    ]
    total, weight, metrics = objective(
      jax.tree.unflatten(tree, leaves), batch, key
    )
    return total + jnp.where(mark == SPOIL_LOSS, poison, 0.0), weight, metrics

  return spoilt


@jax.custom_vjp
def _tap(x: jax.Array, poison: jax.Array) -> jax.Array:
  """The identity, whose gradient gets `poison` added to its first entry."""
  del poison
  return x


def _tap_forward(x, poison):
  return x, poison


def _tap_backward(poison, gradient):
  flat = gradient.reshape(-1)
  return flat.at[0].add(poison).reshape(gradient.shape), jnp.zeros(())


_tap.defvjp(_tap_forward, _tap_backward)


def _same(a: state.TrainState, b: state.TrainState) -> bool:
  """Whether two states hold the same bits."""
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs
  )


if __name__ == "__main__":
  dose.run(
    poison,
    n=200,
    is_kept=lambda f: (
      f["caught"] == f["named"] == f["injections"] and f["applied"] == 0
    ),
  )
