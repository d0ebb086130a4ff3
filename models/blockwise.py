"""Weights in 4 or 8 bits: neighbours in blocks that share a scale.

NF4 and double quantization: QLoRA, arXiv 2305.14314, whose appendix E has the
16 numbers. The scales of scales are of 2110.02861. Blocks are of up to 64
neighbours along the last dimension, the largest even divisor of it, so that they lie
within what a shard holds; a width that 64 divides has blocks of 64.
"""

import functools
import typing
from typing import Any, Literal

import flax.struct
import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

Kind = Literal["nf4", "int4", "int8"]
BLOCK = 64  # entries at most that share a scale
_SCALES = 256  # of these that share one again
_LARGEST = {"int4": 7, "int8": 127}
# Quantiles of a normal distribution, scaled to [-1, 1], 0 among them.
NF4 = np.float32([
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
  -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
  0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
  0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0,
])  # fmt: skip


@functools.cache
def dynamic() -> np.ndarray:
  """256 numbers in [-1, 1]: a sign, a power of ten, and a part of it.

  The smaller a number, the fewer parts its power has.
  """
  found = [0.0, 1.0]
  for power in range(7):
    ends = np.linspace(0.1, 1, 2**power + 1, dtype=np.float32)
    parts = (ends[:-1] + ends[1:]) / 2 * np.float32(10.0 ** (power - 6))
    found += [*parts, *-parts]
  return np.sort(np.float32(found))


# Unchecked, both: as pytrees they also carry shapes, shardings, stacked layers.
@typing.no_type_check
@flax.struct.dataclass
class DoubleScale:
  """Scales in 8 bits: their mean, and what each is above it."""

  codes: Int[Array, "..."]
  scale: Float[Array, "S"]  # of 256 neighbours each
  mean: Float[Array, ""]

  def decode(self) -> Float[Array, "..."]:
    """The scales, fp32."""
    parts = jnp.asarray(dynamic())[self.codes].reshape(-1)
    each = jnp.repeat(self.scale, _SCALES)[: parts.size]
    return (parts * each).reshape(self.codes.shape) + self.mean


@typing.no_type_check
@flax.struct.dataclass
class BlockArray:
  """A weight in blocks.

  Of 4 bits two neighbours share a byte, the first in its upper half: XLA:CPU
  takes no argument of a type of 4 bits. `scale` has one entry a block.
  """

  values: Int[Array, "..."]
  scale: Float[Array, "..."] | DoubleScale
  kind: Kind = flax.struct.field(pytree_node=False, default="nf4")

  def dequantize(self, dtype: jnp.dtype) -> Array:
    """The weight as an array of `dtype`, computed in fp32."""
    scale = self.scale
    if isinstance(scale, DoubleScale):
      scale = scale.decode()
    parts = self.values
    if self.kind != "int8":
      parts = jnp.stack([parts >> 4, parts & 15], -1)
      parts = parts.reshape(*self.values.shape[:-1], -1)
    if self.kind == "nf4":
      parts = jnp.asarray(NF4)[parts.astype(jnp.int32)]
    else:
      middle = 8 if self.kind == "int4" else 0
      parts = (parts.astype(jnp.float32) - middle) / _LARGEST[self.kind]
    blocks = parts.reshape(*scale.shape, -1) * scale[..., None]
    return blocks.reshape(parts.shape).astype(dtype)

  def rows(self, ids: Int[Array, "..."], dtype: jnp.dtype) -> Array:
    """Some rows of a table."""
    scale = self.scale
    if isinstance(scale, DoubleScale):
      scale = scale.decode()
    return BlockArray(self.values[ids], scale[ids], self.kind).dequantize(dtype)


def size(width: int) -> int:
  """Entries of a block of a weight whose last dimension is so wide."""
  return max(n for n in range(2, BLOCK + 1, 2) if width % n == 0)


def quantize(
  w: Float[Array, "..."], kind: Kind, double: bool = False
) -> BlockArray:
  """To the nearest of what the kind has, block by block.

  Args:
    w: one weight.
    kind: of its entries.
    double: whether the scales are quantized too.

  Raises:
    ValueError: a last dimension that is odd.
  """
  if w.shape[-1] % 2:
    raise ValueError(
      f"base.weights={kind}: a weight of the shape {w.shape} has no pairs along "
      "its last dimension. Hold the base as bfloat16."
    )
  blocks = w.astype(jnp.float32).reshape(*w.shape[:-1], -1, size(w.shape[-1]))
  scale = jnp.abs(blocks).max(-1)
  parts = blocks / jnp.where(scale > 0, scale, 1)[..., None]
  if kind == "nf4":
    codes = _nearest(parts, NF4)
  else:
    codes = jnp.round(parts * _LARGEST[kind])
  codes = codes.reshape(w.shape)
  if kind == "int8":
    values = codes.astype(jnp.int8)
  else:
    codes = (codes + (8 if kind == "int4" else 0)).astype(jnp.uint8)
    values = codes[..., ::2] << 4 | codes[..., 1::2]
  return BlockArray(values, _doubled(scale) if double else scale, kind)


def _doubled(scale: Float[Array, "..."]) -> DoubleScale:
  mean = scale.mean()
  flat = (scale - mean).reshape(-1)
  blocks = jnp.pad(flat, (0, -flat.size % _SCALES)).reshape(-1, _SCALES)
  largest = jnp.abs(blocks).max(-1)
  parts = blocks / jnp.where(largest > 0, largest, 1)[:, None]
  codes = _nearest(parts, dynamic()).reshape(-1)[: flat.size]
  return DoubleScale(
    codes.reshape(scale.shape).astype(jnp.uint8), largest, mean
  )


def _nearest(x: Float[Array, "..."], book: np.ndarray) -> Int[Array, "..."]:
  return jnp.searchsorted(jnp.asarray((book[1:] + book[:-1]) / 2), x)


def axes(names: tuple[str | None, ...], kind: Kind, double: bool) -> Any:
  """Names of the dimensions of what `quantize` makes of a weight.

  Blocks are few: along the last dimension scales are whole on every device, and
  quantized ones altogether.
  """
  stacked = names[:1] if names[0] == "layers" else ()
  scale = (*names[:-1], None)
  if double:
    whole = (*stacked, *(None,) * (len(names) - len(stacked)))
    scale = DoubleScale(whole, (*stacked, None), stacked)
  return BlockArray(names, scale, kind)


def stacked(names: tuple[str | None, ...], function: Any) -> Any:
  """The function of one weight, for the layers of a stack where it is one."""
  return jax.vmap(function) if names[0] == "layers" else function
