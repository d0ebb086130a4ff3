"""Adam whose moments are kept in fewer bits: bfloat16, or 8 bits in blocks.

Blockwise quantization: arXiv 2110.02861. Up to 128 neighbours along the last
dim of a weight share one fp32 scale, the largest of them, and each is one of
2 * 127 + 1 parts of it (256 of a second moment). Blocks lie within the shards
of a weight whose widths are multiples of theirs. Vectors stay fp32, and so
does, of 8 bits, what has no divisor from 16 to 128 as its last dim: `whole`
tells.

Deviations: the parts are powers, (k / 127)^3 and (k / 255)^6, in the place of a
table: 2.4 % apart at the top, down to 5e-7 of the scale, and without a look-up.
Rounding is to either neighbour by chance, so that a moment is right in the
mean: to the nearest, one that moves by less than half a part never would.
Steps are no longer than Adam's can be, |m| / sqrt(v) by Cauchy and Schwarz.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import optax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from models import leaves
from models.leaves import Axes

Kind = Literal["float32", "bfloat16", "int8"]
_BLOCK = 128  # entries at most that share a scale
_SMALLEST = 16  # and at least: a scale of 4 bytes for 16 is 1/4 byte each
# Parts of the scale, and the power that spreads them.
_FIRST, _SECOND = (127, 3), (255, 6)


class Moments(NamedTuple):
  """Trees like the parameters; MaskedNode where there is no scale."""

  count: Int[Array, ""]
  first: Any
  second: Any
  first_scale: Any
  second_scale: Any


class _Leaf(NamedTuple):
  step: Any
  first: Any
  second: Any
  first_scale: Any
  second_scale: Any


def scale_by_adam(
  axes: Axes, b1: float, b2: float, eps: float, kind: Kind
) -> optax.GradientTransformation:
  """`optax.scale_by_adam`, with moments of a kind other than float32.

  Args:
    axes: tree of names.
    b1: of the first moment.
    b2: of the second one.
    eps: added to the root.
    kind: of what is kept between steps; all is computed in fp32.
  """

  def encoded(names, step, first, second, key):
    keys, none = jax.random.split(key), optax.MaskedNode()
    if kind == "bfloat16" and _is_matrix(names):
      first, second = to_bf16(first, keys[0]), to_bf16(second, keys[1])
    if kind == "bfloat16" or not _has_blocks(names, first.shape):
      return _Leaf(step, first, second, none, none)
    parts, scale = quantize(first, keys[0], *_FIRST)
    first, second = parts.astype(jnp.int8), quantize(second, keys[1], *_SECOND)
    # A second moment of 0 would make a step of any length.
    parts = jnp.where(second[1].repeat(block(first.shape[-1]), -1) > 0, 1, 0)
    parts = jnp.maximum(second[0], parts).astype(jnp.uint8)
    return _Leaf(step, first, parts, scale, second[1])

  def init(params):
    def zeros(names, p):
      return encoded(names, (), p * 0.0, p * 0.0, jax.random.key(0))

    return _state(jnp.zeros((), jnp.int32), leaves.map(zeros, axes, params))

  def update(updates, state, params=None):
    del params
    count = state.count + 1
    keys = _keys(axes, jax.random.fold_in(jax.random.key(0), count))
    longest = _longest(b1, b2, count)

    def one(names, g, key, first, second, first_scale, second_scale):
      first = b1 * decode(first, first_scale, *_FIRST) + (1 - b1) * g
      second = b2 * decode(second, second_scale, *_SECOND) + (1 - b2) * g * g
      root = jnp.sqrt(second / (1 - b2**count)) + eps
      step = jnp.clip(first / (1 - b1**count) / root, -longest, longest)
      return encoded(names, step, first, second, key)

    new = leaves.map(one, axes, updates, keys, *state[1:])
    return _part(new, "step"), _state(count, new)

  return optax.GradientTransformation(init, update)


def block(n: int) -> int:
  """Neighbours of n that share a scale: the largest divisor up to 128."""
  return max(size for size in range(1, _BLOCK + 1) if n % size == 0)


def whole(axes: Axes, shapes: Any) -> list[str]:
  """Paths of the matrices and tables that have no blocks: they stay fp32."""

  def stays(names, x):
    return _is_matrix(names) and not _has_blocks(names, x.shape)

  kept = jax.tree.leaves(leaves.map(stays, axes, shapes))
  flat = zip(leaves.paths(axes), kept, strict=True)
  return [path for path, is_whole in flat if is_whole]


def _is_matrix(names: leaves.Names) -> bool:
  return bool(leaves.sides(names)[1])


def _has_blocks(names: leaves.Names, shape: tuple[int, ...]) -> bool:
  return _is_matrix(names) and block(shape[-1]) >= _SMALLEST


def quantize(
  x: Float[Array, "..."], key: PRNGKeyArray, n: int, power: int
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """Parts k in -n..n, x = sign(k) (|k| / n)^power * scale in the mean."""
  blocks = x.reshape(*x.shape[:-1], -1, block(x.shape[-1]))
  scale = jnp.abs(blocks).max(-1, keepdims=True)
  share = jnp.abs(blocks) / jnp.where(scale > 0, scale, 1.0)
  low = jnp.clip(jnp.floor(n * share ** (1 / power)), 0, n - 1)
  below, above = (low / n) ** power, ((low + 1) / n) ** power
  chance = (share - below) / (above - below)
  parts = low + (jax.random.uniform(key, blocks.shape) < chance)
  return (jnp.sign(blocks) * parts).reshape(x.shape), scale[..., 0]


def decode(
  values: Array, scale: Array | optax.MaskedNode, n: int, power: int
) -> Float[Array, "..."]:
  """What a moment of any kind stands for, in fp32."""
  values = values.astype(jnp.float32)
  if isinstance(scale, optax.MaskedNode):
    return values
  size = values.shape[-1] // scale.shape[-1]
  sizes = jnp.abs(values / n) ** power * scale.repeat(size, -1)
  return jnp.sign(values) * sizes


def to_bf16(x: Float[Array, "..."], key: PRNGKeyArray) -> Array:
  """One of the two neighbours in bfloat16; x in the mean."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  bits += jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  kept = jax.lax.bitcast_convert_type(
    bits & jnp.uint32(0xFFFF0000), jnp.float32
  )
  return kept.astype(jnp.bfloat16)


def _longest(b1: float, b2: float, count: Int[Array, ""]) -> Float[Array, ""]:
  """The longest step that Adam can make, of any gradients."""
  t, ratio = count.astype(jnp.float32), b1 * b1 / b2
  total = t if ratio == 1 else (1 - ratio**t) / (1 - ratio)
  unbias = jnp.sqrt(1 - b2**t) / (1 - b1**t)
  return (1 - b1) / (1 - b2) ** 0.5 * jnp.sqrt(total) * unbias


def _keys(axes: Axes, key: PRNGKeyArray) -> Any:
  treedef = jax.tree.structure(axes, is_leaf=leaves.is_names)
  return treedef.unflatten(list(jax.random.split(key, treedef.num_leaves)))


def _part(tree: Any, name: str) -> Any:
  return jax.tree.map(
    lambda leaf: getattr(leaf, name),
    tree,
    is_leaf=lambda x: isinstance(x, _Leaf),
  )


def _state(count: Int[Array, ""], tree: Any) -> Moments:
  return Moments(count, *map(functools.partial(_part, tree), _Leaf._fields[1:]))
