"""Longformer: RoBERTa that sees a window, and a few tokens that see all.

Longformer: arXiv 2004.05150. Those few have projections of their own, with which
they look at the whole text; all others see them with the projections that they
look through their window with. `types` marks them by 1. Without types it is the
first token of a text that labels are asked of, and else none.
The mask says what nobody sees: blocks of it are skipped where a kernel works in
blocks (rows split over `context`), and computed in vain elsewhere.
"""

import dataclasses

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs.ranges import Count
from models import attention_kernels, bert, roberta
from models.layers import attention, mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(roberta.Config):
  """RoBERTa's, and the window."""

  max_length: Count = 4096  # tokens; there are no positions beyond
  window: Count = 256  # tokens that are seen to either side

  pattern = ("sliding",)
  marked = True


class Attention(attention.Attention):
  """Through the window; of marked tokens, over the whole text."""

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], seen: mask.Mask
  ) -> Float[Array, "B T D"]:
    def attend(x, suffix, **changes):
      q, k, v = (
        self._project(x, name + suffix, self.n_heads, "heads") for name in "qkv"
      )
      return attention_kernels.run(q, k, v, seen.replace(**changes))

    is_marked = jnp.not_equal(seen.q_marks, 0)
    near = attend(x, "", window=self.window)
    # One after the other: at once, both would hold their logits.
    x, near = jax.lax.optimization_barrier((x, near))
    # A query of segment 0 sees nothing.
    asking = jnp.where(is_marked, seen.q_segments, 0)
    far = attend(x, "_whole", q_segments=asking, q_marks=None, kv_marks=None)
    out = jnp.where(is_marked[:, :, None, None], far, near)
    return self._out(out, x.shape[-1])


class Block(bert.Block):
  """BERT's, with this attention."""

  def attend(
    self, x: Float[Array, "B T D"], seen: mask.Mask
  ) -> Float[Array, "B T D"]:
    """Both ways of looking."""
    c = self.config
    # A mask's window counts the token itself.
    return self.attention(Attention, window=c.window + 1)(x, seen)


class Model(bert.Model):
  """Tokens to hidden states; `models.families` has the heads and the rest."""

  block: type[nn.Module] = Block

  def kinds(
    self, tokens: Int[Array, "B T"], types: Int[Array, "B T"] | None
  ) -> Int[Array, "B T"]:
    """All texts are of one kind."""
    return jnp.zeros_like(tokens)

  def seen(
    self,
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    types: Int[Array, "B T"] | None,
  ) -> mask.Mask:
    """What is marked sees all; the rest, its window."""
    marks = types
    if marks is None:
      is_first = jnp.equal(positions, 0).astype(jnp.int32)
      asks = "texts" in self.config.heads.kinds
      marks = is_first if asks else jnp.zeros_like(is_first)
    return mask.of_tokens(positions, segment_ids, marks, causal=False)


PRESETS = {
  "longformer_base_4096": Config(**bert.sized(768, 12, 12)),
  "longformer_large_4096": Config(**bert.sized(1024, 24, 16)),
}
