"""Replicas that train alone, and meet once a round: DiLoCo, 2311.08105.

Every replica has its own copy of the parameters and of the optimizer's state,
and its own rows of each batch. Once a round what the copies have gone since the
last one, in the mean, is the gradient of an outer step: gradient descent with
Nesterov's momentum, from where all of them go on. Between replicas nothing else
travels but the figures that the loop reads: some hundred bytes a step.

`params` of the state are those of the outer steps: they are what is evaluated
and published, and stay as they are while a round goes on. A step that is bad in
one replica is not applied there, whatever it is elsewhere, and told as bad.

Deviation: streams and partial rounds are not here; all replicas weigh the same.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import numpy as np
from jax import numpy as jnp

from configs import fields
from configs.ranges import Count, Fraction
from data.batch import Batch
from sharding import rules
from train.core import guard
from train.core.state import Round, TrainState, spread
from train.core.step import Metrics, Step

AXIS = "replica"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How long a round is, and how the outer step goes; defaults of the paper."""

  round_steps: Count = 500  # of each replica, until they meet
  lr: Annotated[float, "(0, 10]"] = 0.7  # of the outer step; 1: to the mean
  momentum: Fraction = 0.9  # of the outer step, Nesterov's

  def __post_init__(self):
    fields.check(self)


def make(
  config: Config, inner: Callable[..., Step], n_replicas: int, seed: int
) -> Step:
  """The step of all replicas, and behind the last one of a round the outer one.

  Args:
    config: of the rounds.
    inner: seed -> the step of one replica.
    n_replicas: that the mesh has.
    seed: of the first replica; the others count on.
  """
  seeds = np.uint32(seed) + np.arange(n_replicas, dtype=np.uint32)

  def step(state: TrainState, batch: Batch):
    copies, metrics, verdict = alone(
      inner, seeds, state.opt_state.copies, batch
    )
    done = state.step + 1

    # The figures are exchanged within: beside a branch that exchanges too, CPU
    # devices may take the two in different orders and wait for each other.
    def figures():
      return jax.tree.map(lambda x: x.sum(0), metrics), told(verdict)

    def meet():
      momentum = state.opt_state.momentum
      return outer(config, state.params, copies.params, momentum), figures()

    def go_on():
      return (state.params, copies.params, state.opt_state.momentum), figures()

    (params, own, momentum), (summed, said) = jax.lax.cond(
      done % config.round_steps == 0, meet, go_on
    )
    new = Round(copies.replace(params=own), momentum)
    return TrainState(done, params, new, state.guard), summed, said

  return step


def alone(
  inner: Callable[..., Step],
  seeds: np.ndarray,
  copies: TrainState,
  batch: Batch,
) -> tuple[TrainState, Metrics, guard.Verdict]:
  """A step of every replica on its rows; nothing travels between them."""

  def one(seeds, copies, rows):
    own = jax.tree.map(lambda x: x[0], copies)
    found = inner(seed=seeds[0])(own, rows)
    return jax.tree.map(lambda x: x[None], found)

  return rules.apart(one, AXIS)(seeds, copies, batch)


def outer(
  config: Config, params: Any, copies: Any, momentum: Any
) -> tuple[Any, Any, Any]:
  """The outer step.

  Args:
    config: its rate and its momentum.
    params: where the round began.
    copies: where the replicas came to, [replicas, ...].
    momentum: of the outer steps before.

  Returns:
    The new params, copies and momentum.
  """
  n_replicas = jax.tree.leaves(copies)[0].shape[0]
  mean = jax.tree.map(lambda x: x.mean(0), copies)
  momentum = jax.tree.map(
    lambda v, p, m: config.momentum * v + (p - m), momentum, params, mean
  )
  # Not p - lr * (p - m): with a rate of 1 that misses the mean by a rounding.
  params = jax.tree.map(
    lambda p, m, v: (1 - config.lr) * p
    + config.lr * (m - config.momentum * v),
    params, mean, momentum,
  )  # fmt: skip
  return params, spread(params, n_replicas), momentum


def told(verdicts: guard.Verdict) -> guard.Verdict:
  """That of the first replica whose step was bad; else of the first."""
  first_bad = jnp.argmin(verdicts.is_good)
  return jax.tree.map(lambda x: x[first_bad], verdicts)
