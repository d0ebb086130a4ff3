"""Who may see whom: a mask as data, dense only where a kernel asks for it.

Windows with tokens that see all: Longformer, arXiv 2004.05150.  Blocks: BigBird,
2007.14062.
"""

import math
import typing

import flax.struct
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class Blocks:
  """A text in blocks: a token sees its own, the ones beside, first and last.

  As `transformers` evaluates BigBird: the first block stands in for the random
  ones, and so counts 1 + n_random times; texts too short for the pattern are
  seen whole.
  """

  size: int = flax.struct.field(pytree_node=False)  # tokens
  n_random: int = flax.struct.field(pytree_node=False)

  @property
  def longest_whole(self) -> int:
    """Texts of up to so many tokens are not in blocks."""
    return (5 + 2 * self.n_random) * self.size


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
  # In a window, what is not 0 sees all of its segment and is seen by all of it;
  # in blocks, the length of the token's text.
  q_marks: Int[Array, "B T"] | None = None
  kv_marks: Int[Array, "B S"] | None = None
  blocks: Blocks | None = flax.struct.field(pytree_node=False, default=None)

  @property
  def queries(self) -> dict[str, Array | None]:
    """What there is for every query; `replace` takes it back."""
    own = {f"q_{name}": getattr(self, f"q_{name}") for name in _OF_TOKENS}
    return {**own, "prefix": self.prefix}

  @property
  def keys(self) -> dict[str, Array | None]:
    """What there is for every key."""
    return {f"kv_{name}": getattr(self, f"kv_{name}") for name in _OF_TOKENS}

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
      if self.kv_marks is not None:
        near |= jnp.not_equal(self.q_marks, 0)[:, :, None]
        near |= jnp.not_equal(self.kv_marks, 0)[:, None, :]
      seen &= near
    if self.blocks is not None:
      q, k, last, is_whole = self._in_blocks()
      ends = jnp.equal(q, 0) | jnp.equal(q, last)
      ends |= jnp.equal(k, 0) | jnp.equal(k, last)
      seen &= is_whole | ends | (abs(q - k) <= 1)
    return seen

  def distances(self) -> Int[Array, "B T S"]:
    """How far back from query t key s lies, within their segment."""
    return self.q_positions[:, :, None] - self.kv_positions[:, None, :]

  def bias(self) -> Float[Array, "B T S"] | None:
    """What is added to the logits; None where nothing is."""
    if self.blocks is None:
      return None
    q, k, last, is_whole = self._in_blocks()
    repeated = jnp.equal(k, 0) & (q > 0) & (q < last) & ~is_whole
    return jnp.where(repeated, math.log(1 + self.blocks.n_random), 0.0)

  def _in_blocks(self) -> tuple[Array, Array, Array, Array]:
    """Blocks of queries and of keys, the last one, and who is in none."""
    size = self.blocks.size
    n_tokens = self.q_marks[:, :, None]
    return (
      self.q_positions[:, :, None] // size,
      self.kv_positions[:, None, :] // size,
      (n_tokens - 1) // size,
      n_tokens <= self.blocks.longest_whole,
    )


_OF_TOKENS = ("positions", "segments", "marks")


def of_tokens(
  positions: Int[Array, "B T"],
  segment_ids: Int[Array, "B T"],
  marks: Int[Array, "B T"] | None = None,
  **kind,
) -> Mask:
  """Self-attention: the queries are the keys."""
  own = positions, segment_ids
  return Mask(*own, *own, q_marks=marks, kv_marks=marks, **kind)
