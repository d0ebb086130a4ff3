"""MPT: GPT with ALiBi in the place of positions, and no bias anywhere.

MosaicML, 2023.  ALiBi: arXiv 2108.12409. Not here: clipped queries, keys and
values (the 30B and StoryWriter models).
"""

import dataclasses
from typing import Any, Literal

from flax import linen as nn

from configs.ranges import Count
from models import gpt
from models.layers import decoder, mlp, position
from models.layers.norm import LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gpt.Config):
  """GPT's."""

  vocab_size: Count = 50_432
  max_length: position.Length = 2048  # tokens; the longest text it shall read
  activation: Literal[*mlp.ACTIVATIONS] = "gelu"

  alibi = True
  biased = False


class Block(gpt.Block):
  """x + attention(norm x), then x + mlp(norm x)."""

  @staticmethod
  def norm(config: Any, name: str) -> nn.Module:
    """LayerNorm without a bias."""
    return LayerNorm(config.norm_epsilon, biased=False, name=name)


class Model(decoder.Model):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block


PRESETS = {
  "mpt_7b": Config(d_model=4096, n_layers=32, n_heads=32, d_ff=16_384),
}
