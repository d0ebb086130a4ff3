"""What layers keep of the text read so far, of a static size.

Keys and values, or a state.

Position p of a row lies in slot p % C of a layer. Padding is never written, so
rows of different lengths live side by side whichever side they were padded on;
a sliding layer has only as many slots as its window, and wraps. What an
attention keeps is its own: `config.kept` says (heads, width of keys, of values),
where compressed keys and values are one head.
Extra letters: C slots of a layer.
"""

import itertools
import typing
from typing import Any

import flax.struct
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from models.layers.mask import Mask
from sharding.rules import constrain

NAMES = ("batch", "act_kv_heads", None, None)  # of keys and values


# Unchecked, both: as a pytree a cache also carries axis names and shardings.
@typing.no_type_check
@flax.struct.dataclass
class LayerCache:
  """One layer's slots, laid out as the attention of one token reads them."""

  keys: Float[Array, "B K C H"]
  values: Float[Array, "B K C Hv"]
  source: "LayerCache | None" = None  # of another text, read once and whole


@typing.no_type_check
@flax.struct.dataclass
class LayerState:
  """What one layer keeps that has no keys and values.

  See layers/ssm.py and layers/recurrent.py.
  """

  inputs: dict[str, Float[Array, "B I N H"]]  # of the last tokens
  state: Float[Array, "B N H S"]
  source: LayerCache | None = None  # of another text, read once and whole


class Memory(typing.NamedTuple):
  """What a layer of a family has in the place of keys and values."""

  inputs: dict[str, tuple[int, int]]  # of each of the last tokens
  n_before: int  # how many of those
  state: tuple[int, int, int]  # N, H and S of the state
  n_flops: float  # of a token, where the state meets no parameter


@typing.no_type_check
@flax.struct.dataclass
class Cache:
  """All layers, and how many tokens each row has read."""

  layers: list[LayerCache | LayerState]
  lengths: Int[Array, "B"]
  source_segments: Int[Array, "B S"] | None = None  # of the other text

  def split(self, n: int) -> tuple["Cache", "Cache"]:
    """The first n layers, and the rest."""
    parts = self.layers[:n], self.layers[n:]
    return tuple(self.replace(layers=layers) for layers in parts)


def empty(config: Any, n_rows: int, n_slots: int) -> Cache:
  """A cache for texts of up to n_slots tokens, what follows them included.

  Args:
    config: of a model family.
    n_rows: texts side by side.
    n_slots: of a full layer; a sliding one has as many as its window at most.
  """

  if not getattr(config, "causal", True):
    raise ValueError(
      "this family reads a text both ways and cannot write: decoding needs one "
      "that reads one way, as llama."
    )

  def zeros(kind: str) -> LayerCache | LayerState:
    if kind == "state":
      return _no_state(config, n_rows)
    n_heads, *widths = config.kept
    # One head is never split.
    names = NAMES if n_heads > 1 else ("batch", None, None, None)
    size = min(n_slots, config.window) if kind == "sliding" else n_slots
    return LayerCache(
      *(
        constrain(
          jnp.zeros((n_rows, n_heads, size, width), config.dtype), *names
        )
        for width in widths
      )
    )

  kinds = itertools.islice(itertools.cycle(config.pattern), config.n_layers)
  layers = [zeros(kind) for kind in kinds]
  return Cache(layers, constrain(jnp.zeros(n_rows, jnp.int32), "batch"))


def _no_state(config: Any, n_rows: int) -> LayerState:
  """That of a text of which nothing was read; states are fp32."""
  memory: Memory = config.state
  inputs = {
    name: constrain(
      jnp.zeros((n_rows, memory.n_before, *shape), config.dtype),
      *("batch", None, "act_heads" if name == "x" else None, None),
    )
    for name, shape in memory.inputs.items()
  }
  state = jnp.zeros((n_rows, *memory.state), jnp.float32)
  return LayerState(inputs, constrain(state, "batch", "act_heads", None, None))


def extend(
  old: LayerCache,
  lengths: Int[Array, "B"],
  k_BTKH: Float[Array, "B T K H"],
  v_BTKH: Float[Array, "B T K Hv"],
  mask: Mask,
) -> tuple[LayerCache, LayerCache, Mask]:
  """Writes T new tokens behind the `lengths` read so far.

  Returns:
    the layer as written, the keys and values that the new tokens may look at,
    and the mask over those.
  """
  n_new, n_slots = k_BTKH.shape[1], old.keys.shape[2]
  new = LayerCache(k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))
  written = _write(old, new, mask)
  if n_new == 1 or mask.window is None:
    n_read = lengths + jnp.not_equal(mask.q_segments, 0).sum(1)
    positions, segments = _content(n_read, n_slots)
    seen = written
  else:
    # The first new tokens still see what the last ones overwrite on the ring:
    # all of them look at the old slots and at each other.
    positions, segments = _content(lengths, n_slots)
    positions = jnp.concatenate([positions, mask.q_positions], axis=1)
    segments = jnp.concatenate([segments, mask.q_segments], axis=1)
    seen = jax.tree.map(lambda o, n: jnp.concatenate([o, n], axis=2), old, new)
  mask = mask.replace(kv_positions=positions, kv_segments=segments)
  return written, seen, mask


def _content(
  lengths: Int[Array, "B"], n_slots: int
) -> tuple[Int[Array, "B C"], Int[Array, "B C"]]:
  """Positions and segments of the slots; segment 0 marks an empty one.

  A slot holds the last position p < length with p % C == slot.
  """
  last_B1 = lengths[:, None] - 1
  slot_1C = jnp.arange(n_slots)[None]
  positions_BC = last_B1 - (last_B1 - slot_1C) % n_slots
  return positions_BC, jnp.greater_equal(positions_BC, 0).astype(jnp.int32)


def _write(old: LayerCache, new: LayerCache, mask: Mask) -> LayerCache:
  """Writes the new tokens [B K T H] to their slots, but for padding.

  By row and head: as one slice of a single row, XLA:CPU would copy all slots
  several times at every step.
  """
  n_slots = old.keys.shape[2]
  real_BT = jnp.not_equal(mask.q_segments, 0)
  last_B1 = jnp.where(real_BT, mask.q_positions, -1).max(1, keepdims=True)
  kept_BT = real_BT & (mask.q_positions > last_B1 - n_slots)
  # An index beyond the slots drops the write.
  slots_BT = jnp.where(kept_BT, mask.q_positions % n_slots, n_slots)
  slots_BKT = jnp.broadcast_to(slots_BT[:, None], new.keys.shape[:3])

  def write(old_CH, new_TH, slots_T):
    return old_CH.at[slots_T].set(new_TH, mode="drop")

  by_head = jax.vmap(jax.vmap(write))
  return jax.tree.map(lambda o, n: by_head(o, n, slots_BKT), old, new)
