"""Llama and its kin: pre-norm RMSNorm, rotary positions, gated feed-forward.

Llama: arXiv 2302.13971, 2307.09288, 2407.21783.  Mistral (window): 2310.06825.
Qwen2 (biased queries, keys, values): 2407.10671.  Qwen3 (normed queries and
keys): 2505.09388.  SmolLM2: 2502.02737.  SmolLM3 (every fourth layer without
positions): Hugging Face, 2025; 2501.18795.
"""

import dataclasses
from typing import Annotated, Any, Literal

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from configs import fields
from configs.ranges import Count, Epsilon, Fraction
from models.layers import decoder, position, stack
from models.layers.attention import Attention
from models.layers.mlp import MLP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(decoder.Config):
  """Sizes as in the papers; parameters are fp32 whatever `dtype` is."""

  vocab_size: Count
  d_model: Count
  n_layers: Count
  n_heads: Count
  n_kv_heads: Count
  d_head: Count
  d_ff: Count
  max_length: position.Length = 2048  # tokens; the longest text it shall read
  # Base of the rotary frequencies; 10,000 in Llama 1 and 2.
  rope_theta: Annotated[float, "(1, inf)"] = 10_000.0
  rope_scaling: position.Scaling | None = None  # beyond the trained length
  norm_epsilon: Epsilon = 1e-5  # Llama 2, 3, Mistral; 1e-6 in Llama 1, Qwen
  tied: bool = False  # the output head is the embedding
  qkv_biased: bool = False  # Qwen2
  qk_normed: bool = False  # Qwen3
  window: Count | None = None  # tokens that a "sliding" layer sees
  # Repeated; "unrotated" layers are full ones without positions (SmolLM3).
  pattern: tuple[Literal["full", "sliding", "unrotated"], ...] = ("full",)
  dropout: Fraction = 0.0  # on each residual branch
  dtype: stack.Dtype = "bfloat16"  # of the computation
  remat: stack.Remat = "none"  # what the backward pass finds saved
  scanned: bool = True  # one compiled layer; False unrolls, for decoding

  def __post_init__(self):
    fields.check(self)
    if self.n_heads % self.n_kv_heads:
      raise ValueError(
        f"n_heads={self.n_heads} is not a multiple of n_kv_heads="
        f"{self.n_kv_heads}: every kv head serves the same number of heads."
      )
    if not 1 <= len(self.pattern) <= self.n_layers:
      raise ValueError(
        f"pattern={self.pattern} is of {len(self.pattern)} layers, and n_layers="
        f"{self.n_layers}: it has one at least, and no more than there are."
      )
    if ("sliding" in self.pattern) != (self.window is not None):
      raise ValueError(
        f"window={self.window} with pattern={self.pattern}: a window goes "
        "with sliding layers, and sliding layers with a window."
      )
    position.check(self.d_head, self.d_rotary, self.rope_scaling)

  @property
  def d_rotary(self) -> int:
    """Dimensions of a head that turn with the position."""
    return self.d_head

  @property
  def kept(self) -> tuple[int, int, int]:
    """What decoding keeps of a token: heads, width of keys and of values."""
    return self.n_kv_heads, self.d_head, self.d_head


class Block(decoder.Block):
  """x + attention(norm x), then x + mlp(norm x)."""

  activation = "silu"

  def self_attention(self, **extras: Any) -> nn.Module:
    """Grouped queries with rotary positions, and what kin of Llama add."""
    c = self.config
    return Attention(
      n_heads=c.n_heads,
      n_kv_heads=c.n_kv_heads,
      d_head=c.d_head,
      dtype=jnp.dtype(c.dtype),
      window=c.window if self.kind == "sliding" else None,
      qkv_biased=c.qkv_biased,
      qk_norm_epsilon=c.norm_epsilon if c.qk_normed else None,
      **extras,
      name="attention",
    )

  def feed_forward(
    self, x: Float[Array, "B T D"], side: stack.Side
  ) -> Float[Array, "B T D"]:
    """Gated."""
    del side
    c = self.config
    return MLP(
      c.d_ff, self.activation, jnp.dtype(c.dtype), gated=True, name="mlp"
    )(x)


class Model(decoder.RotaryModel):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block


_LLAMA3_SCALING = position.Scaling(
  kind="llama3", factor=8.0, original_length=8192
)

PRESETS = {
  # Throughline's own: quickstart and tests.
  "3m": Config(
    vocab_size=4096,
    d_model=192,
    n_layers=6,
    n_heads=6,
    n_kv_heads=2,
    d_head=32,
    d_ff=512,
    max_length=1024,
    tied=True,
  ),
  "15m": Config(
    vocab_size=32_000,
    d_model=288,
    n_layers=6,
    n_heads=6,
    n_kv_heads=6,
    d_head=48,
    d_ff=768,
    max_length=1024,
    tied=True,
  ),
  "110m": Config(
    vocab_size=32_000,
    d_model=768,
    n_layers=12,
    n_heads=12,
    n_kv_heads=12,
    d_head=64,
    d_ff=2048,
    max_length=1024,
    tied=True,
  ),
  "smollm2_135m": Config(
    vocab_size=49_152,
    d_model=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    d_head=64,
    d_ff=1536,
    max_length=8192,
    rope_theta=100_000.0,
    tied=True,
  ),
  "smollm3_3b": Config(
    vocab_size=128_256,
    d_model=2048,
    n_layers=36,
    n_heads=16,
    n_kv_heads=4,
    d_head=128,
    d_ff=11_008,
    max_length=65_536,
    rope_theta=5_000_000.0,
    norm_epsilon=1e-6,
    tied=True,
    pattern=("full", "full", "full", "unrotated"),
  ),
  "llama2_7b": Config(
    vocab_size=32_000,
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    d_head=128,
    d_ff=11_008,
    max_length=4096,
  ),
  "llama2_70b": Config(
    vocab_size=32_000,
    d_model=8192,
    n_layers=80,
    n_heads=64,
    n_kv_heads=8,
    d_head=128,
    d_ff=28_672,
    max_length=4096,
  ),
  "llama3_8b": Config(
    vocab_size=128_256,
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    d_head=128,
    d_ff=14_336,
    max_length=8192,
    rope_theta=500_000.0,
  ),
  "llama3_70b": Config(
    vocab_size=128_256,
    d_model=8192,
    n_layers=80,
    n_heads=64,
    n_kv_heads=8,
    d_head=128,
    d_ff=28_672,
    max_length=8192,
    rope_theta=500_000.0,
  ),
  "llama3_2_1b": Config(
    vocab_size=128_256,
    d_model=2048,
    n_layers=16,
    n_heads=32,
    n_kv_heads=8,
    d_head=64,
    d_ff=8192,
    max_length=131_072,
    rope_theta=500_000.0,
    rope_scaling=dataclasses.replace(_LLAMA3_SCALING, factor=32.0),
    tied=True,
  ),
  "mistral_7b": Config(
    vocab_size=32_000,
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    d_head=128,
    d_ff=14_336,
    max_length=32_768,
    window=4096,
    pattern=("sliding",),
  ),
  "qwen2_500m": Config(
    vocab_size=151_936,
    d_model=896,
    n_layers=24,
    n_heads=14,
    n_kv_heads=2,
    d_head=64,
    d_ff=4864,
    max_length=32_768,
    rope_theta=1_000_000.0,
    norm_epsilon=1e-6,
    tied=True,
    qkv_biased=True,
  ),
  "qwen2_7b": Config(
    vocab_size=152_064,
    d_model=3584,
    n_layers=28,
    n_heads=28,
    n_kv_heads=4,
    d_head=128,
    d_ff=18_944,
    max_length=32_768,
    rope_theta=1_000_000.0,
    norm_epsilon=1e-6,
    qkv_biased=True,
  ),
  "qwen3_600m": Config(
    vocab_size=151_936,
    d_model=1024,
    n_layers=28,
    n_heads=16,
    n_kv_heads=8,
    d_head=128,
    d_ff=3072,
    max_length=40_960,
    rope_theta=1_000_000.0,
    norm_epsilon=1e-6,
    tied=True,
    qk_normed=True,
  ),
  "qwen3_8b": Config(
    vocab_size=151_936,
    d_model=4096,
    n_layers=36,
    n_heads=32,
    n_kv_heads=8,
    d_head=128,
    d_ff=12_288,
    max_length=40_960,
    rope_theta=1_000_000.0,
    norm_epsilon=1e-6,
    qk_normed=True,
  ),
}
PRESETS["llama1_7b"] = dataclasses.replace(
  PRESETS["llama2_7b"], max_length=2048, norm_epsilon=1e-6
)
PRESETS["llama3_1_8b"] = dataclasses.replace(
  PRESETS["llama3_8b"], max_length=131_072, rope_scaling=_LLAMA3_SCALING
)
