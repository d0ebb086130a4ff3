"""What a step changes: its number, the parameters, the optimizer, the guard."""

import dataclasses
import typing
from typing import Any

import flax.struct
import jax
import optax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from models import families
from sharding.rules import Layout
from train.core import guard, optim, parts, width
from train.core.parts import Parts


# Unchecked: as a pytree it also carries shardings and shapes.
@typing.no_type_check
@flax.struct.dataclass
class TrainState:
  """No functions and no key: the key of a step is fold_in(seed, step)."""

  step: Int[Array, ""]
  params: Any
  opt_state: optax.OptState
  guard: guard.History
  # What no step changes: a parts.Frozen, or nothing.
  frozen: Any = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Copies:
  """An optimizer that trains a copy of the parameters in each replica."""

  optimizer: optax.GradientTransformation  # of one copy
  n_replicas: int


Optimizer = optax.GradientTransformation | Copies


@typing.no_type_check
@flax.struct.dataclass
class Round:
  """The `opt_state` of copies: see diloco.py. `params` are what they share."""

  copies: TrainState  # every leaf [replicas, ...]
  momentum: Any


def start(params: Any, optimizer: Optimizer) -> TrainState:
  """The state before the first step, but for what is frozen."""
  if isinstance(optimizer, Copies):
    opt_state = Round(
      spread(start(params, optimizer.optimizer), optimizer.n_replicas),
      jax.tree.map(jnp.zeros_like, params),
    )
  else:
    opt_state = optimizer.init(params)
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, opt_state, guard.start())


def spread(tree: Any, n_replicas: int) -> Any:
  """The same for every replica."""
  return jax.tree.map(
    lambda x: jnp.broadcast_to(x, (n_replicas, *x.shape)), tree
  )


def shardings(
  model: families.Config | Parts,
  optimizer: Optimizer,
  layout: Layout,
) -> TrainState:
  """Where every leaf of the state lives: moments by the rules of `state`.

  Args:
    model: what is trained, all of it or its parts.
    optimizer: as `run.make_step` gives it.
    layout: where it lives.

  Raises:
    ValueError: the rules do not fit a shape; names the leaf and the sizes.
  """
  model = parts.of(model)
  params, axes = model.shapes, model.axes
  moments = layout.shardings(axes, params, "state")
  if isinstance(optimizer, Copies):
    one = shardings(model, optimizer.optimizer, layout)
    copies = jax.tree.map(lambda s: s.update(spec=P("replica", *s.spec)), one)
    opt_state = Round(copies, moments)
  else:
    opt_state = optim.shardings(optimizer, params, moments)
  return TrainState(
    layout.replicated,
    layout.shardings(axes, params, "params"),
    opt_state,
    jax.tree.map(lambda _: layout.replicated, jax.eval_shape(guard.start)),
    layout.shardings(model.frozen_axes, model.frozen_shapes, "params"),
  )


def abstract(
  model: families.Config | Parts,
  optimizer: Optimizer,
  layout: Layout,
) -> TrainState:
  """Shapes, types and shardings of the state; nothing is computed."""
  model = parts.of(model)
  shapes = jax.eval_shape(lambda params: start(params, optimizer), model.shapes)
  shapes = shapes.replace(frozen=model.frozen_shapes)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings(model, optimizer, layout),
  )


def init(
  model: families.Config,
  optimizer: Optimizer,
  layout: Layout,
  seed: int,
  mup_width: int | None = None,
) -> TrainState:
  """The first state, born where it lives: no device holds what it does not
  keep. The numbers are the same on every mesh.

  Args:
    model: what is trained.
    optimizer: as `run.make_step` gives it.
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


def begin(
  model: Parts,
  optimizer: Optimizer,
  layout: Layout,
  params: Any,
  frozen: Any,
) -> TrainState:
  """The first state around parameters that are there, and live where they shall.

  Args:
    model: the parts.
    optimizer: as `run.make_step` gives it.
    layout: where it lives.
    params: the trained part; it is taken over.
    frozen: the other one.
  """
  places = shardings(model, optimizer, layout).replace(frozen={})
  make = jax.jit(
    lambda params: start(params, optimizer),
    out_shardings=places,
    donate_argnums=0,
  )
  return make(params).replace(frozen=frozen)
