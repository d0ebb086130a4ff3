"""Keys and values of what was read so far, of a static size.

A slot remembers its position and segment, so that any order of slots is right:
padding on either side, and the ring of a sliding window that has wrapped.
Extra letters: C slots of a layer.
"""

import flax.struct
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class LayerCache:
  """One layer's slots; segment 0 marks those that hold nothing."""

  keys: Float[Array, "B C K H"]
  values: Float[Array, "B C K H"]
  positions: Int[Array, "B C"]
  segment_ids: Int[Array, "B C"]


@flax.struct.dataclass
class Cache:
  """All layers, and the number of tokens that were written, padding too."""

  layers: tuple[LayerCache, ...]
  index: Int[Array, ""]


def layer(
  n_rows: int, n_slots: int, n_kv_heads: int, d_head: int, dtype: jnp.dtype
) -> LayerCache:
  """An empty layer."""
  kv = jnp.zeros((n_rows, n_slots, n_kv_heads, d_head), dtype)
  nothing = jnp.zeros((n_rows, n_slots), jnp.int32)
  return LayerCache(kv, kv, nothing, nothing)


def write(
  old: LayerCache, new: LayerCache, index: Int[Array, ""]
) -> LayerCache:
  """Writes T new entries behind the `index` written so far, as on a ring.

  Only the last C of them are kept when T exceeds the slots.
  """
  n_slots, n_new = old.keys.shape[1], new.keys.shape[1]
  if n_new > n_slots:
    new = jax.tree.map(lambda x: x[:, -n_slots:], new)
    index = index + n_new - n_slots
    n_new = n_slots
  if n_new == 1:
    start = index % n_slots
    return jax.tree.map(
      lambda o, n: jax.lax.dynamic_update_slice_in_dim(
        o, n.astype(o.dtype), start, axis=1
      ),
      old,
      new,
    )
  slots = (index + jnp.arange(n_new)) % n_slots
  return jax.tree.map(
    lambda o, n: o.at[:, slots].set(n.astype(o.dtype)), old, new
  )


def join(old: LayerCache, new: LayerCache) -> LayerCache:
  """What T new tokens may see: all slots, then themselves."""
  return jax.tree.map(
    lambda o, n: jnp.concatenate([o, n.astype(o.dtype)], axis=1), old, new
  )
