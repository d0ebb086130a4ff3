"""Typed weights: a leaf is an array or one of these; only `einsum` knows.

`take` and `ragged` know too, what rows and experts need.
LoRA: arXiv 2106.09685.  DoRA: 2402.09353.  IA3: 2205.05638.
"""

import functools
import string
import typing

import flax.struct
import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from models.blockwise import BlockArray
from sharding import rules


# Unchecked: as pytrees they also carry shapes, shardings and stacked layers.
@typing.no_type_check
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


@typing.no_type_check
@flax.struct.dataclass
class LoraArray:
  """base + (alpha / R) * a @ b, with the base frozen and b = 0 at the start.

  With a magnitude, each output of that is rescaled to be so long: DoRA.
  """

  base: "Weight"
  a: Float[Array, "... R"]
  b: Float[Array, "R ..."]
  alpha: float = flax.struct.field(pytree_node=False, default=16.0)
  magnitude: Float[Array, "..."] | None = None  # of each output
  key: Int[Array, "2"] | None = None  # drops a share of what a and b read
  dropout: float = flax.struct.field(pytree_node=False, default=0.0)

  @property
  def strength(self) -> float:
    """What a @ b is multiplied by."""
    return self.alpha / self.a.shape[-1]

  def dense(self) -> Float[Array, "..."]:
    """One array, fp32."""
    a, b = self.a.astype(jnp.float32), self.b.astype(jnp.float32)
    w = dense(self.base) + self.strength * jnp.tensordot(a, b, axes=1)
    if self.magnitude is None:
      return w
    return w * _widened(self.rescaled(), w.ndim)

  def rescaled(self) -> Float[Array, "..."]:
    """Magnitude over length of each output; no gradient reaches the length."""
    plain = jax.lax.stop_gradient(self.replace(magnitude=None).dense())
    inputs = tuple(range(plain.ndim - self.magnitude.ndim))
    return self.magnitude / jnp.sqrt(jnp.square(plain).sum(inputs))


@typing.no_type_check
@flax.struct.dataclass
class ScaledArray:
  """A frozen base whose inputs or outputs are scaled: IA3."""

  base: "Weight"
  scale: Float[Array, "..."]  # of the leading dims, or of the last ones
  of_inputs: bool = flax.struct.field(pytree_node=False, default=False)

  def dense(self) -> Float[Array, "..."]:
    """One array, fp32."""
    w = dense(self.base)
    if not self.of_inputs:
      return w * _widened(self.scale, w.ndim)
    return w * self.scale.reshape(
      self.scale.shape + (1,) * (w.ndim - self.scale.ndim)
    )


@typing.no_type_check
@flax.struct.dataclass
class ExtendedArray:
  """A table with rows behind its last one: as a head it has its own alone."""

  base: "Weight"
  rows: Float[Array, "P D"]


Weight = (
  Array | QuantArray | BlockArray | LoraArray | ScaledArray | ExtendedArray
)


def dense(w: Weight) -> Float[Array, "..."]:
  """A weight of any kind as one array, fp32; of a stack, layer by layer."""
  if isinstance(w, LoraArray | ScaledArray):
    return w.dense()
  if isinstance(w, QuantArray | BlockArray):
    return w.dequantize(jnp.float32)
  return w.astype(jnp.float32)


def einsum(
  spec: str,
  x: Array,
  w: Weight,
  dtype: jnp.dtype,
  out: DTypeLike | None = None,
) -> Array:
  """Contracts activations with a weight of any kind, computing in `dtype`.

  Sums are fp32 and are rounded to `out`, which is `dtype` where it is not said.
  """
  if isinstance(w, LoraArray):
    full = einsum(spec, x, jax.lax.stop_gradient(w.base), dtype, out)
    y = full + w.strength * _low_rank(spec, _dropped(x, w), w, dtype, out)
    if w.magnitude is None:
      return y
    return (y * _widened(w.rescaled(), y.ndim)).astype(y.dtype)
  if isinstance(w, ScaledArray):
    base = jax.lax.stop_gradient(w.base)
    if w.of_inputs:
      x = x.astype(dtype) * _widened(w.scale.astype(dtype), x.ndim)
      return einsum(spec, x, base, dtype, out)
    y = einsum(spec, x, base, dtype, out)
    return y * _widened(w.scale.astype(y.dtype), y.ndim)
  if isinstance(w, QuantArray | BlockArray):
    w = w.dequantize(dtype)
  return checkpoint_name(_dot(spec, x, w, dtype, out), "product")


def _widened(scale: Array, n_dims: int) -> Array:
  """For the last dims of what has n_dims."""
  return scale.reshape((1,) * (n_dims - scale.ndim) + scale.shape)


def _dropped(x: Array, w: LoraArray) -> Array:
  if w.key is None or w.dropout == 0:
    return x
  kept = 1 - w.dropout
  key = jax.random.wrap_key_data(w.key)
  is_kept = jax.random.bernoulli(key, kept, x.shape)
  return jnp.where(is_kept, x / kept, 0).astype(x.dtype)


def _low_rank(
  spec: str, x: Array, w: LoraArray, dtype: jnp.dtype, out: DTypeLike | None
) -> Array:
  """x times a @ b, never made whole: first the factor that x contracts."""
  x_dims, w_dims, out_dims = _dims(spec)
  n_leading = w.a.ndim - 1
  first = w.a, w_dims[:n_leading] + "R"
  second = w.b, "R" + w_dims[n_leading:]
  if w_dims[0] in out_dims:  # as in the head, whose rows are outputs
    first, second = second, first
  kept = "".join(dim for dim in x_dims if dim not in first[1])
  low = _dot(f"{x_dims},{first[1]}->{kept}R", x, first[0], dtype)
  return _dot(f"{kept}R,{second[1]}->{out_dims}", low, second[0], dtype, out)


def ragged(
  x: Float[Array, "U D"],
  w: Weight,
  sizes: Int[Array, "E"],
  dtype: jnp.dtype,
) -> Float[Array, "U F"]:
  """Groups of rows times the matrix of their expert, computing in `dtype`.

  Args:
    x: rows, group by group; those behind the last group give anything.
    w: [E, D, F].
    sizes: rows of each group.
    dtype: of the computation.
  """
  if isinstance(w, LoraArray | ScaledArray):
    raise ValueError("adapters of experts are not there yet: adapt others.")
  if isinstance(w, QuantArray | BlockArray):
    w = w.dequantize(dtype)
  out = jax.lax.ragged_dot(
    x.astype(dtype),
    w.astype(dtype),
    sizes,
    preferred_element_type=jnp.float32,
  )
  return checkpoint_name(out.astype(dtype), "product")


def take(
  table: Weight, ids: Int[Array, "B T"], dtype: jnp.dtype
) -> Float[Array, "B T D"]:
  """Looks up rows of a table [V, D] of any kind."""
  if isinstance(table, LoraArray):
    rows = take(jax.lax.stop_gradient(table.base), ids, dtype)
    low = take(table.a, ids, dtype)
    update = _dot("BTR,RD->BTD", low, table.b, dtype)
    return rows + table.strength * update
  if isinstance(table, BlockArray):
    return table.rows(ids, dtype)
  if isinstance(table, ExtendedArray):
    beyond = ids - (size := table.base.shape[0])
    own = table.rows[jnp.maximum(beyond, 0)].astype(dtype)
    rows = take(table.base, jnp.minimum(ids, size - 1), dtype)
    return jnp.where(beyond[..., None] < 0, rows, own)
  if isinstance(table, QuantArray):
    one_for_all = table.scale.shape[0] == 1
    scale = table.scale[None] if one_for_all else table.scale[ids]
    return table.values[ids].astype(dtype) * scale.astype(dtype)
  # Cast after the look-up: a gradient added up in bf16 stops growing at 256
  # tokens of a kind.
  return table[ids].astype(dtype)


def _dot(
  spec: str,
  x: Array,
  w: Array,
  dtype: jnp.dtype,
  out: DTypeLike | None = None,
) -> Array:
  x, w = x.astype(dtype), w.astype(dtype)
  # jnp.einsum contracts in alphabetical order: H before N, it would turn a
  # weight [N, H, D] around at every call.
  _, w_dims, _ = _dims(spec)
  in_order = str.maketrans(w_dims, string.ascii_lowercase[: len(w_dims)])
  return _product(spec.translate(in_order), out or dtype, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(spec: str, out: DTypeLike, x: Array, w: Array) -> Array:
  """x times w, added up in fp32, to out; the gradients take the same form.

  On a CPU the sum is fp32 by name and rounded behind: the only form in which
  XLA:CPU multiplies in bf16, as plain bf16 dots are upcast first, half as fast.
  On others that would write it in fp32: 4 % of a step of Llama 1B on an H100.
  Of a batch of products (one for each expert) it is a form that XLA:CPU
  compiles and cannot run.
  """
  if rules.platform() != "cpu":
    return jnp.einsum(spec, x, w, preferred_element_type=out)
  x_dims, w_dims, out_dims = _dims(spec)
  if set(x_dims) & set(w_dims) & set(out_dims):
    return jnp.einsum(spec, x.astype(out), w.astype(out))
  wide = jnp.einsum(spec, x, w, preferred_element_type=jnp.float32)
  return wide.astype(out)


def _forward(spec, out, x, w):
  """Saves what a gradient will ask for: of a frozen weight, not what it read."""
  saved = x.value if w.perturbed else None, w.value if x.perturbed else None
  return _product(spec, out, x.value, w.value), saved


def _backward(spec, out, saved, g):
  x, w = saved
  g = g.astype((w if x is None else x).dtype)
  if rules.platform() == "tpu":
    # Made once and not in each of the two products that read it: 5 % fewer
    # cycles of a step of Llama 2 7B on 256 v5e.
    g = jax.lax.optimization_barrier(g)
  x_dims, w_dims, out_dims = _dims(spec)
  dx = None
  if w is not None:
    dx = _product(f"{out_dims},{w_dims}->{x_dims}", g.dtype, g, w)
  if x is None:
    return dx, None
  # x first, turned around at the end: XLA:CPU copies the first operand of a sum
  # over tokens, and the gradient of the logits is V / D times as wide as x.
  dims = "".join(sorted(w_dims, key=lambda dim: dim in out_dims))
  dw_spec = f"{x_dims},{out_dims}->{dims}"
  if rules.platform() == "cpu":
    dw = _product(dw_spec, g.dtype, x, g)
  else:
    # Rounded by each device before their sum, which is then half as wide on the
    # wire: 39 against 54 GB for a step of Llama 2 7B on 16 v5e.
    dw = jnp.einsum(dw_spec, x, g)
  return dx, jnp.einsum(f"{dims}->{w_dims}", dw)


_product.defvjp(_forward, _backward, symbolic_zeros=True)


def _dims(spec: str) -> tuple[str, str, str]:
  inputs, out = spec.split("->")
  x_dims, w_dims = inputs.split(",")
  return x_dims, w_dims, out
