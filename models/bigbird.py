"""BigBird: BERT that sees blocks: those beside, the first, the last.

BigBird: arXiv 2007.14062, as `transformers` evaluates it, and here in training
too: the first block stands in for the random ones, and counts for them. A text
of up to (5 + 2 n_random) blocks sees itself whole.
The mask says what nobody sees: blocks of it are skipped where a kernel works in
blocks (rows split over `context`), and computed in vain elsewhere.
"""

import dataclasses
from typing import Literal

import jax
from jax import numpy as jnp
from jaxtyping import Array, Int

from configs.ranges import Count, Natural
from models import bert
from models.layers import mask
from models.layers.heads import Config as HeadsConfig
from models.layers.mlp import ACTIVATIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(bert.Config):
  """BERT's, and the blocks."""

  vocab_size: Count = 50_358
  max_length: Count = 4096  # tokens; there are no positions beyond
  activation: Literal[*ACTIVATIONS] = "gelu_tanh"
  block_size: Count = 64  # tokens
  n_random: Natural = 3  # blocks
  heads: HeadsConfig = HeadsConfig(pooling="gelu_tanh")

  marked = True


class Model(bert.Model):
  """Tokens to hidden states; `models.families` has the heads and the rest."""

  def seen(
    self,
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    types: Int[Array, "B T"] | None,
  ) -> mask.Mask:
    """Blocks of each text, by its length."""
    del types
    c = self.config
    return mask.of_tokens(
      positions,
      segment_ids,
      lengths(positions, segment_ids),
      causal=False,
      blocks=mask.Blocks(size=c.block_size, n_random=c.n_random),
    )


def lengths(
  positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
) -> Int[Array, "B T"]:
  """For every token, how many its segment has."""

  def of_row(positions_T, segments_T):
    n_segments = positions_T.size + 1
    last = jax.ops.segment_max(positions_T, segments_T, n_segments)
    return last[segments_T] + 1

  return jax.vmap(of_row)(positions, segment_ids).astype(jnp.int32)


PRESETS = {
  "bigbird_roberta_base": Config(
    **bert.sized(768, 12, 12), heads=HeadsConfig(kinds=("words", "texts"))
  ),
}
