"""StableLM: Llama with LayerNorm, whose heads turn in a part of their width.

StableLM 3B 4E1T (Stability AI, 2023).  Stable LM 2: arXiv 2402.17834. Not here:
a norm for each head's queries and keys (the 12B model).
"""

import dataclasses
from typing import Any

from flax import linen as nn

from configs.ranges import Share
from models import llama
from models.layers.norm import LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(llama.Config):
  """Llama's, and two of its own."""

  rotary_share: Share = 0.25  # of a head's dimensions, that turn
  parallel: bool = False  # both branches read the same, behind one norm

  @property
  def d_rotary(self) -> int:
    """Dimensions of a head that turn with the position."""
    return int(self.d_head * self.rotary_share)


class Block(llama.Block):
  """x + attention(norm x), then x + mlp(norm x), or both at once."""

  @property
  def branches(self) -> str:
    """How they come to the residual stream."""
    return "shared" if self.config.parallel else "sequential"

  @staticmethod
  def norm(config: Any, name: str) -> nn.Module:
    """LayerNorm with a bias."""
    return LayerNorm(config.norm_epsilon, name=name)


class Model(llama.Model):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block


PRESETS = {
  "stablelm_3b_4e1t": Config(
    vocab_size=50_304,
    d_model=2560,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    d_head=80,
    d_ff=6912,
    max_length=4096,
  ),
  "stablelm2_1_6b": Config(
    vocab_size=100_352,
    d_model=2048,
    n_layers=24,
    n_heads=32,
    n_kv_heads=32,
    d_head=64,
    d_ff=5632,
    max_length=4096,
    qkv_biased=True,
  ),
}
