"""One training step: a pure function, (state, batch) to state and figures."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import numpy as jnp
from jaxtyping import Array

from data.batch import Batch
from models import leaves
from sharding import rules
from train.core import guard, parts, precision, streamed
from train.core.state import TrainState

Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, weight)
# (params, batch, key) -> (loss_sum, weight_sum, metrics): sums, so that they
# add over micro-batches, hosts and time.
Objective = Callable[[Any, Batch, Array | None], tuple[Array, Array, Metrics]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics, guard.Verdict]]


def make(
  objective: Objective,
  optimizer: optax.GradientTransformationExtraArgs,
  *,
  n_micro: int = 1,
  seed: int | Array = 0,
  axes: leaves.Axes | None = None,
  grad_shardings: Any = None,
  across: str | None = None,
  judge: guard.Config | None = None,
  join: Callable[[Any, Any, Array], Any] = parts.only_trained,
) -> Step:
  """Builds the step that the loop compiles once, with the state donated.

  Gradients of the micro-batches are added and divided once, by the weight of
  the whole batch: how a batch is split never changes the update. A step that
  the guard finds bad only counts: all else stays as it was.

  Args:
    objective: what is minimised, per unit of weight.
    optimizer: as `optim.make` builds it.
    n_micro: parts that a batch is worked through in; divides its rows.
    seed: of dropout; a step's key depends on its number alone.
    axes: names of the parameters' dims, for the norms to leave out what no
      gradient trains; None: all are trained.
    grad_shardings: where the sum of the gradients lives, a tree like params of
      shardings, or of specs in whatever mesh is in use, as `across` needs.
    across: a mesh axis whose parts meet once a step; None: in every part.
    judge: what makes a step bad; None: the defaults.
    join: (trained, frozen, key) to the parameters that the objective takes.
  """
  judge = judge or guard.Config()

  def whole(params, frozen, part, key):
    return objective(join(params, frozen, key), part, key)

  sums = _sums(_summed(whole, grad_shardings), n_micro, across)

  def step(state: TrainState, batch: Batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    params = state.params
    scale = precision.loss_scale(state.opt_state)  # 1 but in fp16
    given = params, state.frozen, key, scale
    grads, (loss_sum, weight, metrics) = sums(batch, given)
    weight = jnp.maximum(weight, 1)
    grads = jax.tree.map(lambda g: g / (weight * scale), grads)

    loss = loss_sum / weight
    grad_norm = _norm(axes, grads)
    verdict, history = guard.judge(
      judge,
      state.guard,
      loss=loss,
      grad_norm=grad_norm,
      params=params,
      grads=grads,
      batch=batch,
      overflows=precision.is_scaled(state.opt_state),
    )
    updates, opt_state = optimizer.update(
      grads,
      state.opt_state,
      params,
      value=loss,
      grad=grads,
      # Traced only by optimizers that search along a line.
      value_fn=_mean_loss(whole, state.frozen, batch, key, n_micro, weight),
      is_good=verdict.is_good,  # read by those that keep the state elsewhere
    )
    params, opt_state = streamed.chosen(
      verdict.is_good,
      (optax.apply_updates(params, updates), opt_state),
      (params, state.opt_state),
    )
    metrics |= {"grad_norm": (grad_norm, jnp.ones(()))}
    metrics |= precision.metrics(opt_state)
    new = TrainState(state.step + 1, params, opt_state, history, state.frozen)
    return new, _told(metrics, verdict), verdict

  return step


def _mean_loss(
  whole: Callable[..., Any],
  frozen: Any,
  batch: Batch,
  key: Array,
  n_micro: int,
  weight: Array,
) -> Callable[[Any], Array]:
  """Parameters to the mean over the batch, whose gradient the step has."""

  def loss(params):
    total, _ = over_micro_batches(
      lambda part, key: whole(params, frozen, part, key)[:2],
      batch, key, n_micro,
    )  # fmt: skip
    return total / weight

  return loss


def _sums(
  summed: Callable[..., Any], n_micro: int, across: str | None
) -> Callable[[Batch, Any], Any]:
  """(batch, the other arguments of `summed`) to what all parts add up to.

  Along the axis `across` each goes through its rows alone, before they meet.
  """

  def run(batch, given):
    params, frozen, key, scale = given
    return over_micro_batches(
      lambda part, key: summed(params, frozen, part, key, scale),
      batch, key, n_micro,
    )  # fmt: skip

  def meet(batch, given):
    return rules.added_apart(run, across)(batch, given)

  return run if across is None else meet


def _summed(whole: Callable[..., Any], shardings: Any) -> Callable[..., Any]:
  """(params, frozen, batch, key, scale) to a sum's gradient, and the sums."""

  def run(params, frozen, batch, key, scale):
    def loss(params):
      loss_sum, weight_sum, metrics = whole(params, frozen, batch, key)
      return scale * loss_sum, (loss_sum, weight_sum, metrics)

    grads, sums = jax.grad(loss, has_aux=True)(params)
    if shardings is not None:
      grads = jax.lax.with_sharding_constraint(grads, shardings)
    return grads, sums

  return run


def _told(metrics: Metrics, verdict: guard.Verdict) -> Metrics:
  """A bad step adds nothing: a single NaN would be all that is left of a sum."""
  nothing = jax.tree.map(jnp.zeros_like, metrics)
  is_bad = 1 - verdict.is_good.astype(jnp.float32)
  told = streamed.chosen(verdict.is_good, metrics, nothing)
  return {**told, "bad": (is_bad, jnp.ones(()))}


def _norm(axes: leaves.Axes | None, tree: Any) -> Array:
  """The global norm of what gradients train."""
  return optax.tree.norm(tree if axes is None else leaves.split(axes, tree)[0])


def over_micro_batches(
  function: Callable[[Batch, Array], Any],
  batch: Batch,
  key: Array,
  n_micro: int,
) -> Any:
  """Adds up function(part, key of the part) over the parts of a batch."""
  if n_micro == 1:
    return function(batch, jax.random.fold_in(key, 0))
  parts = split(batch, n_micro)
  function = jax.jit(function, inline=True)  # traced once, run many times
  shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts), key)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def add(total, inputs):
    index, part = inputs
    sums = function(part, jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, sums), None

  total, _ = jax.lax.scan(add, zeros, (jnp.arange(n_micro), parts))
  return total


def split(batch: Batch, n_parts: int) -> Batch:
  """[B, ...] -> [M, B / M, ...].

  Row r goes to part r % n_parts: rows stay on the devices that hold them.
  """
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, n_parts, *x.shape[1:]), 1, 0), batch
  )
