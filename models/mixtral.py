"""Llama whose feed-forwards are experts.

Mixtral: arXiv 2401.04088.  Qwen3-MoE (normed queries and keys): 2505.09388.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from jax import numpy as jnp

from models import llama
from models.layers import stack
from models.layers.moe import Config as ExpertsConfig
from models.layers.moe import Experts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(llama.Config):
  """Llama's, and the experts; `d_ff` is of one expert."""

  experts: ExpertsConfig


class Block(llama.Block):
  """x + attention(norm x), then x + experts(norm x)."""

  def feed_forward(self, x: Any, side: stack.Side) -> Any:
    """Experts in the place of the one feed-forward."""
    c = self.config
    layer = Experts(c.experts, c.d_ff, "silu", jnp.dtype(c.dtype), name="mlp")
    live = jnp.not_equal(side.mask.q_segments, 0)
    return layer(x, live, side.deterministic)


class Model(llama.Model):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block


PRESETS = {
  "mixtral_8x7b": Config(
    vocab_size=32_000,
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    d_head=128,
    d_ff=14_336,
    max_length=32_768,
    rope_theta=1_000_000.0,
    experts=ExpertsConfig(n_experts=8, n_active=2, balance_weight=0.02),
  ),
  "qwen3_30b_a3b": Config(
    vocab_size=151_936,
    d_model=2048,
    n_layers=48,
    n_heads=32,
    n_kv_heads=4,
    d_head=128,
    d_ff=768,
    max_length=40_960,
    rope_theta=1_000_000.0,
    norm_epsilon=1e-6,
    qk_normed=True,
    experts=ExpertsConfig(n_experts=128, n_active=8, balance_weight=0.001),
  ),
  # Throughline's own: quickstart's sizes, 2 of 8 experts.
  "9m": Config(
    vocab_size=4096,
    d_model=192,
    n_layers=6,
    n_heads=6,
    n_kv_heads=2,
    d_head=32,
    d_ff=256,
    max_length=1024,
    tied=True,
    experts=ExpertsConfig(n_experts=8, n_active=2, balance_weight=0.01),
  ),
}
