"""Phi-3 and Phi-4: Llama with LongRoPE, whose heads may turn in part.

Phi-3: arXiv 2404.14219.  Phi-4: 2412.08905.  Phi-4-mini: 2503.01743.
"""

import dataclasses

from configs.ranges import Share
from models import llama


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(llama.Config):
  """Llama's, and one of its own."""

  rotary_share: Share = 1.0  # of a head's dimensions, that turn; 0.75 in 4-mini

  @property
  def d_rotary(self) -> int:
    """Dimensions of a head that turn with the position."""
    return int(self.d_head * self.rotary_share)


class Model(llama.Model):
  """Tokens to hidden states."""


PRESETS = {
  "phi3_mini_4k": Config(
    vocab_size=32_064,
    d_model=3072,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    d_head=96,
    d_ff=8192,
    max_length=4096,
    window=2047,
    pattern=("sliding",),
  ),
  "phi3_medium_4k": Config(
    vocab_size=32_064,
    d_model=5120,
    n_layers=40,
    n_heads=40,
    n_kv_heads=10,
    d_head=128,
    d_ff=17_920,
    max_length=4096,
    window=2047,
    pattern=("sliding",),
  ),
  "phi4": Config(
    vocab_size=100_352,
    d_model=5120,
    n_layers=40,
    n_heads=40,
    n_kv_heads=10,
    d_head=128,
    d_ff=17_920,
    max_length=16_384,
    rope_theta=250_000.0,
  ),
}
