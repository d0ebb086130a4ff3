"""Who may see whom: a mask as data, dense only where a kernel asks for it."""

import typing

import flax.struct
from jax import numpy as jnp
from jaxtyping import Array, Bool, Int


# Unchecked: as a pytree it also carries specs, and gradients that are none.
@typing.no_type_check
@flax.struct.dataclass
class Mask:
  """A query sees a key of its own segment, as far as the kind allows.

  Segment 0 is padding: it sees nothing and nothing sees it. Positions count
  from the start of a segment, so a mask also holds for cached keys, in
  whatever order they lie.
  """

  q_positions: Int[Array, "B T"]
  q_segments: Int[Array, "B T"]
  kv_positions: Int[Array, "B S"]
  kv_segments: Int[Array, "B S"]
  causal: bool = flax.struct.field(pytree_node=False, default=True)
  window: int | None = flax.struct.field(pytree_node=False, default=None)
  # A query also sees the positions below this one, ahead of it too: in a prefix
  # all see each other. One number for every place of a segment.
  prefix: Int[Array, "B T"] | None = None

  def dense(self) -> Bool[Array, "B T S"]:
    """True where query t may see key s."""
    q, k = self.q_positions[:, :, None], self.kv_positions[:, None, :]
    q_seg, k_seg = self.q_segments[:, :, None], self.kv_segments[:, None, :]
    seen = jnp.equal(q_seg, k_seg) & jnp.not_equal(q_seg, 0)
    if self.causal:
      allowed = k <= q
      if self.prefix is not None:
        allowed |= k < self.prefix[:, :, None]
      seen &= allowed
    if self.window is not None:
      near = q - k < self.window
      if not self.causal:
        near &= k - q < self.window
      seen &= near
    return seen

  def distances(self) -> Int[Array, "B T S"]:
    """How far back from query t key s lies, within their segment."""
    return self.q_positions[:, :, None] - self.kv_positions[:, None, :]


def of_tokens(
  positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"], **kind
) -> Mask:
  """Self-attention: the queries are the keys."""
  return Mask(positions, segment_ids, positions, segment_ids, **kind)
