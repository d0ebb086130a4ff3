"""RMSNorm (arXiv 1910.07467) and LayerNorm (1607.06450).

Statistics and the affine part are fp32 whatever the activations are.
"""

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from models.layers.dense import vector


def rms_norm(
  x: Float[Array, "... D"], scale: Float[Array, "D"], epsilon: float
) -> Float[Array, "... D"]:
  """x / rms(x) * scale, in fp32, returned in x's type."""
  wide = x.astype(jnp.float32)
  variance = jnp.square(wide).mean(-1, keepdims=True)
  return _affine(wide * jax.lax.rsqrt(variance + epsilon), scale).astype(
    x.dtype
  )


def layer_norm(
  x: Float[Array, "... D"],
  scale: Float[Array, "D"],
  bias: Float[Array, "D"],
  epsilon: float,
) -> Float[Array, "... D"]:
  """(x - mean) / std * scale + bias, in fp32, returned in x's type."""
  wide = x.astype(jnp.float32)
  centred = wide - wide.mean(-1, keepdims=True)
  variance = jnp.square(centred).mean(-1, keepdims=True)
  normed = _affine(centred * jax.lax.rsqrt(variance + epsilon), scale)
  return (normed + _row(bias, x.ndim)).astype(x.dtype)


def _affine(x: Array, scale: Array) -> Array:
  return x * _row(scale, x.ndim)


def _row(vector: Array, ndim: int) -> Array:
  return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


class RMSNorm(nn.Module):
  """Scale over the last dimension; its name tells how it is split."""

  epsilon: float = 1e-6
  axis: str = "norm"

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    scale = vector(self, "scale", (x.shape[-1],), (self.axis,), 1.0)
    return rms_norm(x, scale, self.epsilon)


class LayerNorm(nn.Module):
  """Scale and bias over the last dimension."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    scale = vector(self, "scale", (x.shape[-1],), ("norm",), 1.0)
    bias = vector(self, "bias", (x.shape[-1],), ("norm",))
    return layer_norm(x, scale, bias, self.epsilon)
