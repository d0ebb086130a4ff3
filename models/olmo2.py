"""OLMo 2: Llama whose norms stand behind the branches.

arXiv 2501.00656. Queries and keys are normed over all heads together.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from models import llama


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(llama.Config):
  """Llama's, with normed queries and keys."""

  qk_normed: bool = True


class Block(llama.Block):
  """x + norm attention(x), then x + norm mlp(x)."""

  def before(
    self, branch: str, x: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """The residual stream as it is."""
    del branch
    return x

  def after(
    self, branch: str, h: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """The norm."""
    return self.norm(self.config, f"{branch}_norm")(h)

  def self_attention(self, **extras: Any) -> nn.Module:
    """Llama's, with wide norms."""
    return super().self_attention(qk_norm_wide=True, **extras)


class Model(llama.Model):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block


def _olmo2(d_model: int, n_layers: int, n_heads: int, d_ff: int, **more):
  defaults = dict(
    vocab_size=100_352,
    d_head=128,
    n_kv_heads=n_heads,
    max_length=4096,
    rope_theta=500_000.0,
    norm_epsilon=1e-6,
  )
  return Config(
    **{**defaults, **more},
    d_model=d_model,
    n_layers=n_layers,
    n_heads=n_heads,
    d_ff=d_ff,
  )


PRESETS = {
  "olmo2_1b": _olmo2(2048, 16, 16, 8192),
  "olmo2_7b": _olmo2(4096, 32, 32, 11_008),
  "olmo2_13b": _olmo2(5120, 40, 40, 13_824),
  "olmo2_32b": _olmo2(5120, 64, 40, 27_648, n_kv_heads=8),
}
