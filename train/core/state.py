"""What a step changes: its number, the parameters, the optimizer, the guard."""

import typing
from typing import Any

import flax.struct
import jax
import optax
from jax import numpy as jnp
from jaxtyping import Array, Int

from models import families
from sharding.rules import Layout
from train.core import guard, optim, width


# Unchecked: as a pytree it also carries shardings and shapes.
@typing.no_type_check
@flax.struct.dataclass
class TrainState:
  """No functions and no key: the key of a step is fold_in(seed, step)."""

  step: Int[Array, ""]
  params: Any
  opt_state: optax.OptState
  guard: guard.History


def start(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  opt_state = optimizer.init(params)
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state, guard.start())


def shardings(
  model: families.Config,
  optimizer: optax.GradientTransformation,
  layout: Layout,
) -> TrainState:
  """Where every leaf of the state lives: moments by the rules of `state`.

  Raises:
    ValueError: the rules do not fit a shape; names the leaf and the sizes.
  """
  params, axes = families.abstract(model), families.axes(model)
  moments = layout.shardings(axes, params, "state")
  return TrainState(
    layout.replicated,
    layout.shardings(axes, params, "params"),
    optim.shardings(optimizer, params, moments),
    jax.tree.map(lambda _: layout.replicated, jax.eval_shape(guard.start)),
  )


def abstract(
  model: families.Config,
  optimizer: optax.GradientTransformation,
  layout: Layout,
) -> TrainState:
  """Shapes, types and shardings of the state; nothing is computed."""
  shapes = jax.eval_shape(
    lambda: start(families.init(model, jax.random.key(0)), optimizer)
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings(model, optimizer, layout),
  )


def init(
  model: families.Config,
  optimizer: optax.GradientTransformation,
  layout: Layout,
  seed: int,
  mup_width: int | None = None,
) -> TrainState:
  """The first state, born where it lives: no device holds what it does not
  keep. The numbers are the same on every mesh.

  Args:
    model: what is trained.
    optimizer: as `optim.make` builds it.
    layout: where it lives.
    seed: of the parameters.
    mup_width: as in the optimizer's config.
  """

  def first(key):
    params = families.init(model, key)
    if mup_width is not None:
      params = width.rescale(params, families.axes(model), mup_width)
    return start(params, optimizer)

  make = jax.jit(first, out_shardings=shardings(model, optimizer, layout))
  return make(jax.random.key(seed))
