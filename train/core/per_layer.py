"""Scalings that look at one weight at a time, also where layers are stacked.

optax has LAMB's and Adafactor's for whole arrays; there the layers of a stack
would share their norms, and the two largest dims would be factored, whatever
they are.

LAMB: 1904.00962.  Adafactor: 1804.04235.  Muon's scale: 2502.16982.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from models import leaves


def scale_by_trust_ratio(axes: Any) -> optax.GradientTransformation:
  """Gives the update of each weight the norm of that weight (LAMB)."""

  def scale(names, update, param):
    dims = leaves.weight_dims(names)
    weight_norm, norm = _rms(param, dims), _rms(update, dims)
    moving = (weight_norm > 0) & (norm > 0)
    return update * jnp.where(moving, weight_norm / norm, 1.0)

  return optax.stateless(
    lambda updates, params: leaves.map(scale, axes, updates, params)
  )


def scale_orthogonal(axes: Any, rms: float) -> optax.GradientTransformation:
  """Gives orthogonal matrices an rms; theirs is 1 / sqrt(the longer side)."""

  def scale(names, update):
    if not leaves.is_matrix(names):
      return update
    inputs, outputs = leaves.sides(names)
    sizes = [math.prod(update.shape[d] for d in s) for s in (inputs, outputs)]
    return update * (rms * math.sqrt(max(sizes)))

  return optax.stateless(lambda updates, _: leaves.map(scale, axes, updates))


class FactoredState(NamedTuple):
  """Second moments of each matrix, as row * column / mean(row).

  Invariant: a leaf of `row` has size 1 along the outputs, one of `column` along
  the inputs; all other dims are those of the parameter. So a vector, which has
  no outputs, keeps its second moments in `row`.
  """

  count: Int[Array, ""]
  row: optax.Params
  column: optax.Params


def scale_by_factored_rms(
  axes: Any, decay_power: float, clip: float, min_rms: float
) -> optax.GradientTransformation:
  """Adafactor's update, relative to the size of each weight.

  Args:
    axes: tree of names.
    decay_power: step t weighs in with t ** -decay_power.
    clip: largest rms of an update before it is made relative.
    min_rms: a weight of smaller rms moves as if it had this one.
  """

  def init(params):
    def zeros(side):
      return leaves.map(
        lambda names, p: _mean(jnp.zeros_like(p), leaves.sides(names)[side]),
        axes,
        params,
      )

    return FactoredState(jnp.zeros((), jnp.int32), zeros(1), zeros(0))

  def update(updates, state, params):
    fresh = (state.count + 1.0) ** -decay_power

    def track(side):
      def one(names, moment, g):
        square = _mean(jnp.square(g) + 1e-30, leaves.sides(names)[side])
        return moment + fresh * (square - moment)

      return one

    def scale(names, g, row, column, param):
      inputs, dims = leaves.sides(names)[0], leaves.weight_dims(names)
      g = g * jax.lax.rsqrt(row / _mean(row, inputs)) * jax.lax.rsqrt(column)
      g = g / jnp.maximum(1.0, _rms(g, dims) / clip)
      return g * jnp.maximum(_rms(param, dims), min_rms)

    row = leaves.map(track(1), axes, state.row, updates)
    column = leaves.map(track(0), axes, state.column, updates)
    updates = leaves.map(scale, axes, updates, row, column, params)
    return updates, FactoredState(state.count + 1, row, column)

  return optax.GradientTransformation(init, update)


def _mean(x: Float[Array, "..."], dims: leaves.Dims) -> Float[Array, "..."]:
  return jnp.mean(x, axis=dims, keepdims=True)


def _rms(x: Float[Array, "..."], dims: leaves.Dims) -> Float[Array, "..."]:
  return jnp.sqrt(_mean(jnp.square(x), dims))
