"""Typed weights: a leaf is Array, QuantArray or LoraArray; only `einsum` knows.

LoRA: arXiv 2106.09685.  QLoRA: arXiv 2305.14314.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class QuantArray:
  """values * scale: symmetric integers, one scale per output channel.

  Invariant: values.shape == the logical shape; scale broadcasts against it.
  """

  values: Int[Array, "..."]
  scale: Float[Array, "..."]

  def dequantize(self, dtype: jnp.dtype) -> Array:
    """The weight as an array of `dtype`."""
    return self.values.astype(dtype) * self.scale.astype(dtype)


@flax.struct.dataclass
class LoraArray:
  """base + (alpha / R) * a @ b, with the base frozen and b = 0 at the start."""

  base: Array | QuantArray
  a: Float[Array, "... R"]
  b: Float[Array, "R ..."]
  alpha: float = flax.struct.field(pytree_node=False, default=16.0)


Weight = Array | QuantArray | LoraArray


def einsum(spec: str, x: Array, w: Weight, dtype: jnp.dtype) -> Array:
  """Contracts activations with a weight of any kind, computing in `dtype`."""
  if isinstance(w, LoraArray):
    full = einsum(spec, x, jax.lax.stop_gradient(w.base), dtype)
    x_dims, w_dims, out_dims = _dims(spec)
    contracted = "".join(d for d in w_dims if d not in out_dims)
    free = "".join(d for d in w_dims if d in out_dims)
    rest = "".join(d for d in x_dims if d not in contracted)
    low = _dot(f"{x_dims},{contracted}R->{rest}R", x, w.a, dtype)
    update = _dot(f"{rest}R,R{free}->{out_dims}", low, w.b, dtype)
    return full + (w.alpha / w.a.shape[-1]) * update
  if isinstance(w, QuantArray):
    return _dot(spec, x, w.dequantize(dtype), dtype)
  return _dot(spec, x, w, dtype)


def take(table: Weight, ids: Int[Array, "..."], dtype: jnp.dtype) -> Array:
  """Looks up rows of a table of any kind."""
  if isinstance(table, LoraArray):
    rows = take(jax.lax.stop_gradient(table.base), ids, dtype)
    low = take(table.a, ids, dtype)
    update = _dot("...R,RD->...D", low, table.b, dtype)
    return rows + (table.alpha / table.a.shape[-1]) * update
  if isinstance(table, QuantArray):
    scale = jnp.broadcast_to(table.scale, (*table.scale.shape[:-1], 1))
    if table.scale.shape[0] == 1:
      return table.values[ids].astype(dtype) * table.scale[0].astype(dtype)
    return table.values[ids].astype(dtype) * scale[ids].astype(dtype)
  return table.astype(dtype)[ids]


def _dot(spec: str, x: Array, w: Array, dtype: jnp.dtype) -> Array:
  if dtype == jnp.float32:
    return jnp.einsum(spec, x.astype(dtype), w.astype(dtype))
  return _low_precision_dot(spec, dtype, x.astype(dtype), w.astype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _low_precision_dot(
  spec: str, dtype: jnp.dtype, x: Array, w: Array
) -> Array:
  """low x low -> fp32 -> low: the only form in which XLA:CPU multiplies in bf16.

  Plain bf16 dots are upcast first: 282 GFLOP/s where this form makes 870 (two
  AMD cores), forward and for dx. On TPU and GPU both forms are one.
  """
  return jnp.einsum(spec, x, w, preferred_element_type=jnp.float32).astype(
    dtype
  )


def _forward(spec, dtype, x, w):
  return _low_precision_dot(spec, dtype, x, w), (x, w)


def _backward(spec, dtype, saved, g):
  x, w = saved
  x_dims, w_dims, out_dims = _dims(spec)
  dx = _low_precision_dot(f"{out_dims},{w_dims}->{x_dims}", dtype, g, w)
  dw = jnp.einsum(f"{x_dims},{out_dims}->{w_dims}", x, g)
  return dx, dw


_low_precision_dot.defvjp(_forward, _backward)


def _dims(spec: str) -> tuple[str, str, str]:
  inputs, out = spec.split("->")
  x_dims, w_dims = inputs.split(",")
  return x_dims, w_dims, out
