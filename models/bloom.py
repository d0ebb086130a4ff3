"""BLOOM: GPT with ALiBi in the place of positions, and normed embeddings.

arXiv 2211.05100.  ALiBi: 2108.12409.
"""

import dataclasses

from flax import linen as nn
from jaxtyping import Array, Float, Int

from configs.ranges import Count
from models import gpt
from models.layers import decoder, position


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gpt.Config):
  """GPT's."""

  vocab_size: Count = 250_880
  max_length: position.Length = 2048  # tokens; the longest text it shall read

  alibi = True


class Model(decoder.Model):
  """Tokens to hidden states."""

  block: type[nn.Module] = gpt.Block

  def enter(
    self,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    """Embeddings, normed."""
    return self.block.norm(self.config, "embed_norm")(x)


def _bloom(d_model: int, n_layers: int, n_heads: int) -> Config:
  return Config(
    d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model
  )


PRESETS = {
  "bloom_560m": _bloom(1024, 24, 16),
  "bloom_1b1": _bloom(1536, 24, 16),
  "bloom_1b7": _bloom(2048, 24, 16),
  "bloom_3b": _bloom(2560, 30, 32),
  "bloom_7b1": _bloom(4096, 30, 32),
  "bloom": _bloom(14_336, 70, 112),
}
