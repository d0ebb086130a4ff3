"""Training of tables of which a batch touches few rows: AdaGrad, row by row.

Adaptive Subgradient Methods (Duchi and others, 2011), as GloVe uses it. Only
the rows that a batch names are read and written: a step costs the same whatever
the size of the tables. Of a row that it names twice, the squares of both
gradients are added up first, then both steps are taken.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.struct
import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, Key

from configs import fields
from configs.ranges import Count, Natural, Positive

Tables = dict[str, Float[Array, "rows width"]]
Ids = Mapping[str, Int[Array, "..."]]  # of each table; NONE is no row
Loss = Callable[[Tables], tuple[Array, Array]]  # of the rows: sum and weight
# (what does not change, a part of a block, key) -> the rows, and their loss
Objective = Callable[[Any, Any, Array], tuple[Ids, Loss]]

NONE = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How long, and in what steps."""

  epochs: Count = 5  # times that the corpus is read
  batch: Count = 1024  # pairs at once; what they share is updated as one
  lr: Positive = 0.05  # GloVe
  seed: Natural = 0
  log_every_seconds: Positive = 5.0

  def __post_init__(self):
    fields.check(self)


@flax.struct.dataclass
class State:
  """Tables, and the sum of squares of all gradients that each entry had."""

  tables: Tables
  squares: Tables


def begin(tables: Tables, square: float) -> State:
  """The state ahead of the first step; `square` is where the sums start."""
  return State(tables, jax.tree.map(lambda x: jnp.full_like(x, square), tables))


def fit(
  config: Config,
  state: State,
  fixed: Any,
  objective: Objective,
  blocks: Iterable[tuple[float, Any]],
  n_epoch: int,
  say: Callable[[str], None],
) -> tuple[State, dict[str, float]]:
  """Trains on all blocks, with an lr that falls to nothing.

  Args:
    config: lr, seed, how often to say how far it is.
    state: is given away.
    fixed: see `run`.
    objective: see `run`.
    blocks: how much of the training is done behind each, and it.
    n_epoch: what an epoch reads, for the rate.
    say: takes a line.

  Returns:
    the state, and the loss of the last part and the rate.

  Raises:
    ValueError: there is nothing in the blocks.
  """
  key, began = jax.random.key(config.seed + 1), time.monotonic()
  told, loss, weight, metrics = began, 0.0, 0.0, {"loss": 0.0}
  for i, (done, block) in enumerate(blocks):
    lr = np.float32(config.lr * max(1.0 - done, 1e-4))
    state, (more, n) = run(
      objective, state, fixed, block, lr, jax.random.fold_in(key, i)
    )
    loss, weight = loss + more, weight + n
    seconds = time.monotonic() - began
    is_due = began + seconds - told > config.log_every_seconds
    if (is_due or done == 1.0) and float(weight):
      metrics = {
        "loss": float(loss) / float(weight),
        "rate": done * config.epochs * n_epoch / seconds,
      }
      say(
        f"  {done:4.0%}  loss {metrics['loss']:.4f}  {metrics['rate']:,.0f} a "
        f"second  left {seconds * (1 - done) / done:,.0f} s"
      )
      told, loss, weight = began + seconds, 0.0, 0.0
  if "rate" not in metrics:
    raise ValueError(
      "data.sources hold no two words that stand near each other: give texts of "
      "several words."
    )
  return state, metrics


@functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
def run(
  objective: Objective,
  state: State,
  fixed: Any,
  block: Any,
  lr: Float[Array, ""],
  key: Key[Array, ""],
) -> tuple[State, tuple[Array, Array]]:
  """Steps through a block.

  Args:
    objective: says which rows a batch takes, and their loss.
    state: is given away.
    fixed: what the objective reads and nothing changes.
    block: arrays of as many batches as their first dimension says.
    lr: of all of them.
    key: of what is drawn.

  Returns:
    the state, and the sum and the weight of the losses.
  """

  def one(state, part):
    i, batch = part
    ids, loss = objective(fixed, batch, jax.random.fold_in(key, i))
    return update(state, ids, loss, lr)

  n = jax.tree.leaves(block)[0].shape[0]
  state, losses = jax.lax.scan(one, state, (jnp.arange(n), block))
  return state, jax.tree.map(jnp.sum, losses)


def update(
  state: State, ids: Ids, loss: Loss, lr: Float[Array, ""]
) -> tuple[State, tuple[Array, Array]]:
  """One step on the rows that are named."""
  tables, squares = dict(state.tables), dict(state.squares)
  # Beyond the last row nothing is read or written; -1 would be the last one.
  ids = {
    name: jnp.where(jnp.equal(i, NONE), len(tables[name]), i)
    for name, i in ids.items()
  }
  rows = {
    name: tables[name].at[i].get(mode="fill", fill_value=0.0)
    for name, i in ids.items()
  }

  def total(rows):
    value, weight = loss(rows)
    return value, weight

  (value, weight), grads = jax.value_and_grad(total, has_aux=True)(rows)
  for name, g in grads.items():
    at = ids[name]
    squares[name] = squares[name].at[at].add(jnp.square(g), mode="drop")
    size = squares[name].at[at].get(mode="fill", fill_value=1.0)
    step = -lr * g * jax.lax.rsqrt(size)
    tables[name] = tables[name].at[at].add(step, mode="drop")
  return State(tables, squares), (value, weight)
