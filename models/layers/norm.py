"""RMSNorm (arXiv 1910.07467) and LayerNorm (1607.06450).

Statistics and the affine part are fp32 whatever the activations are.
"""

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from models.layers.dense import vector


def rms_norm(
  x: Float[Array, "..."], scale: Float[Array, "..."], epsilon: float
) -> Float[Array, "..."]:
  """x / rms(x) * scale over the dimensions of scale, which are the last ones.

  In fp32, returned in x's type.
  """
  wide = x.astype(jnp.float32)
  dims = tuple(range(-scale.ndim, 0))
  variance = jnp.square(wide).mean(dims, keepdims=True)
  return _affine(wide * jax.lax.rsqrt(variance + epsilon), scale).astype(
    x.dtype
  )


def layer_norm(
  x: Float[Array, "... D"],
  scale: Float[Array, "D"],
  bias: Float[Array, "D"] | None,
  epsilon: float,
) -> Float[Array, "... D"]:
  """(x - mean) / std * scale + bias, in fp32, returned in x's type."""
  wide = x.astype(jnp.float32)
  centred = wide - wide.mean(-1, keepdims=True)
  variance = jnp.square(centred).mean(-1, keepdims=True)
  normed = _affine(centred * jax.lax.rsqrt(variance + epsilon), scale)
  if bias is not None:
    normed += _row(bias, x.ndim)
  return normed.astype(x.dtype)


def _affine(x: Array, scale: Array) -> Array:
  return x * _row(scale, x.ndim)


def _row(vector: Array, ndim: int) -> Array:
  ahead = (1,) * (ndim - vector.ndim)
  return vector.astype(jnp.float32).reshape(ahead + vector.shape)


class RMSNorm(nn.Module):
  """Over as many of the last dimensions as there are axes.

  They tell how the scale is split; it is offset + the weight, 1 at the start.
  """

  epsilon: float = 1e-6
  axes: tuple[str | None, ...] = ("norm",)
  offset: float = 0.0  # 1 in Gemma: weight decay draws the scale to 1

  @nn.compact
  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    shape = x.shape[-len(self.axes) :]
    scale = vector(self, "scale", shape, self.axes, 1.0 - self.offset)
    if self.offset:
      scale = scale.astype(jnp.float32) + self.offset
    return rms_norm(x, scale, self.epsilon)


class LayerNorm(nn.Module):
  """Scale and bias over the last dimension."""

  epsilon: float = 1e-5
  biased: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    scale = vector(self, "scale", (x.shape[-1],), ("norm",), 1.0)
    bias = None
    if self.biased:
      bias = vector(self, "bias", (x.shape[-1],), ("norm",))
    return layer_norm(x, scale, bias, self.epsilon)
