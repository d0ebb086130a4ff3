"""Gemma 1, 2 and 3 (their text): scaled embeddings, GeGLU, norms that start at 1.

Gemma: arXiv 2403.08295.  Gemma 2 (norms around both branches, soft caps, every
second layer sliding): 2408.00118.  Gemma 3 (normed queries and keys, five of six
layers sliding, with rotary positions of their own): 2503.19786.
"""

import dataclasses
from typing import Annotated, Any

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs.ranges import Count, Positive
from models import llama
from models.layers import position, stack
from models.layers.norm import RMSNorm
from models.layers.position import Rotary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(llama.Config):
  """Llama's, and what is Gemma's own."""

  # Base of the rotary frequencies of sliding layers, which no scaling stretches;
  # None: as in the others. 10,000 in Gemma 3.
  local_theta: Annotated[float, "(1, inf)"] | None = None
  query_size: Count | None = None  # logits are over its root; None: d_head
  softcap: Positive | None = None  # of the logits of attention; 50 in Gemma 2
  final_softcap: Positive | None = None  # of the output; 30 in Gemma 2
  sandwiched: bool = False  # norms behind the branches too; Gemma 2 and 3

  def __post_init__(self):
    super().__post_init__()
    if self.local_theta is not None and self.window is None:
      raise ValueError(
        f"local_theta={self.local_theta} is of sliding layers, and there are "
        "none: give window and pattern, or leave it None."
      )


class Block(llama.Block):
  """x + attention(norm x), then x + mlp(norm x), with norms around each."""

  activation = "gelu_tanh"

  @staticmethod
  def norm(config: Any, name: str) -> nn.Module:
    """Scaled by 1 + w."""
    return RMSNorm(config.norm_epsilon, offset=1.0, name=name)

  def before(
    self, branch: str, x: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """The norm ahead of a branch."""
    name = "before" if self.config.sandwiched else "norm"
    return self.norm(self.config, f"{branch}_{name}")(x)

  def after(
    self, branch: str, h: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """The norm behind a branch, from Gemma 2 on."""
    if not self.config.sandwiched:
      return h
    return self.norm(self.config, f"{branch}_after")(h)

  def self_attention(self, **extras: Any) -> nn.Module:
    """Llama's, with a scale and a soft cap."""
    c = self.config
    return super().self_attention(
      scale=(c.query_size or c.d_head) ** -0.5,
      softcap=c.softcap,
      qk_norm_offset=1.0,
      **extras,
    )


class Model(llama.Model):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block

  def enter(
    self,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    """Embeddings of a length that does not depend on the width."""
    scale = jnp.asarray(self.config.d_model**0.5, x.dtype)
    return stack.residual(x * scale)

  def rotary(self, positions: Int[Array, "B T"]) -> dict[str, Rotary]:
    """Sliding layers of Gemma 3 turn faster."""
    c, phases = self.config, super().rotary(positions)
    if c.local_theta is not None:
      phases["sliding"] = position.rotary(positions, c.d_rotary, c.local_theta)
    return phases


def _gemma2(**settings: Any) -> Config:
  return Config(
    vocab_size=256_000,
    max_length=8192,
    norm_epsilon=1e-6,
    tied=True,
    sandwiched=True,
    softcap=50.0,
    final_softcap=30.0,
    window=4096,
    pattern=("sliding", "full"),
    **settings,
  )


def _gemma3(**settings: Any) -> Config:
  stretched = position.Scaling(kind="linear", factor=8.0)
  defaults = dict(
    vocab_size=262_208,
    max_length=131_072,
    rope_scaling=stretched,
    norm_epsilon=1e-6,
    tied=True,
    rope_theta=1_000_000.0,
    local_theta=10_000.0,
    sandwiched=True,
    qk_normed=True,
    window=1024,
    pattern=("sliding",) * 5 + ("full",),
  )
  return Config(**{**defaults, **settings})


PRESETS = {
  "gemma_2b": Config(
    vocab_size=256_000,
    d_model=2048,
    n_layers=18,
    n_heads=8,
    n_kv_heads=1,
    d_head=256,
    d_ff=16_384,
    max_length=8192,
    norm_epsilon=1e-6,
    tied=True,
  ),
  "gemma_7b": Config(
    vocab_size=256_000,
    d_model=3072,
    n_layers=28,
    n_heads=16,
    n_kv_heads=16,
    d_head=256,
    d_ff=24_576,
    max_length=8192,
    norm_epsilon=1e-6,
    tied=True,
  ),
  "gemma2_2b": _gemma2(
    d_model=2304, n_layers=26, n_heads=8, n_kv_heads=4, d_head=256, d_ff=9216
  ),
  "gemma2_9b": _gemma2(
    d_model=3584, n_layers=42, n_heads=16, n_kv_heads=8, d_head=256, d_ff=14_336
  ),
  "gemma2_27b": _gemma2(
    d_model=4608,
    n_layers=46,
    n_heads=32,
    n_kv_heads=16,
    d_head=128,
    d_ff=36_864,
    query_size=144,
  ),
  "gemma3_270m": _gemma3(
    vocab_size=262_144,
    d_model=640,
    n_layers=18,
    n_heads=4,
    n_kv_heads=1,
    d_head=256,
    d_ff=2048,
    max_length=32_768,
    rope_scaling=None,
    window=512,
  ),
  "gemma3_1b": _gemma3(
    vocab_size=262_144,
    d_model=1152,
    n_layers=26,
    n_heads=4,
    n_kv_heads=1,
    d_head=256,
    d_ff=6912,
    max_length=32_768,
    rope_scaling=None,
    window=512,
  ),
  "gemma3_4b": _gemma3(
    d_model=2560, n_layers=34, n_heads=8, n_kv_heads=4, d_head=256, d_ff=10_240
  ),
  "gemma3_12b": _gemma3(
    d_model=3840, n_layers=48, n_heads=16, n_kv_heads=8, d_head=256, d_ff=15_360
  ),
  "gemma3_27b": _gemma3(
    d_model=5376,
    n_layers=62,
    n_heads=32,
    n_kv_heads=16,
    d_head=128,
    d_ff=21_504,
    query_size=168,
  ),
}
