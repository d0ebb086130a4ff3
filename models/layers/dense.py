"""Declares weights: a shape, the names of its dimensions, how it starts."""

from flax import linen as nn
from jax import numpy as jnp

from models.weights import Weight


def weight(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  axes: tuple[str, ...],
  std: float = 0.02,
) -> Weight:
  """A matrix, normal(0, std) at the start: 0.02 as in GPT-2 and Llama."""
  init = nn.with_logical_partitioning(nn.initializers.normal(std), axes)
  return module.param(name, init, shape, jnp.float32)


def vector(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  axes: tuple[str, ...],
  value: float = 0.0,
) -> Weight:
  """A bias or a scale, constant at the start."""
  init = nn.with_logical_partitioning(nn.initializers.constant(value), axes)
  return module.param(name, init, shape, jnp.float32)
