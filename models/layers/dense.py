"""Declares weights: a shape, the names of its dimensions, how it starts."""

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from models.weights import Weight
from sharding.rules import gathered


def weight(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  axes: tuple[str | None, ...],
  std: float = 0.02,
  *,
  dtype: jnp.dtype | None = None,
) -> Weight:
  """A matrix, normal(0, std) at the start: 0.02 as in GPT-2 and Llama.

  Args:
    module: that it belongs to.
    name: in the module.
    shape: of the whole.
    axes: logical names of the dimensions.
    std: at the start.
    dtype: of the computation, in which every shard of the batch gets it; None:
      as it is kept.
  """
  if module.has_variable("params", name):
    w = module.get_variable("params", name)
    if not isinstance(w, Array):
      return w  # of a kind whose leaves have other shapes
  init = nn.with_logical_partitioning(nn.initializers.normal(std), axes)
  w = module.param(name, init, shape, jnp.float32)
  if dtype is None or not isinstance(w, Array):
    return w
  return gathered(w.astype(dtype), *axes)


def vector(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  axes: tuple[str | None, ...],
  value: float | nn.initializers.Initializer = 0.0,
) -> Weight:
  """A bias or a scale, at the start constant or as a function draws it."""
  draw = value if callable(value) else nn.initializers.constant(value)
  init = nn.with_logical_partitioning(draw, axes)
  return module.param(name, init, shape, jnp.float32)


def add_bias(
  y: Float[Array, "B T *dims"], bias: Weight
) -> Float[Array, "B T *dims"]:
  """y + bias in fp32, returned in y's type.

  The bias's gradient is a sum over all tokens: in bf16 it errs by 1 %.
  """
  wide = y.astype(jnp.float32) + bias.astype(jnp.float32)[None, None]
  return wide.astype(y.dtype)
