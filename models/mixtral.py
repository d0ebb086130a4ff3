"""Llama whose feed-forwards are experts.

Mixtral: arXiv 2401.04088.  Qwen2-MoE (a gated expert that all tokens pass
through): 2407.10671.  Qwen3-MoE (normed queries and keys): 2505.09388.
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
    return experts(self.config, self.config.d_ff, x, side)


def experts(config: Any, d_ff: int, x: Any, side: stack.Side) -> Any:
  """The experts of a block, of width d_ff each; called within the block."""
  dtype = jnp.dtype(config.dtype)
  layer = Experts(config.experts, d_ff, "silu", dtype, name="mlp")
  live = jnp.not_equal(side.mask.q_segments, 0)
  return layer(x, live, side.deterministic)


class Model(llama.Model):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block


def _of(preset: str, experts: ExpertsConfig, **changes: Any) -> Config:
  """A preset of Llama's, with experts and a few changes."""
  return Config(**{**vars(llama.PRESETS[preset]), **changes}, experts=experts)


PRESETS = {
  "mixtral_8x7b": _of(
    "mistral_7b",
    ExpertsConfig(n_experts=8, n_active=2, balance_weight=0.02),
    window=None,
    pattern=("full",),
    rope_theta=1_000_000.0,
  ),
  "qwen1_5_moe_a2_7b": _of(
    "qwen2_7b",
    ExpertsConfig(
      n_experts=60,
      n_active=4,
      n_shared=4,
      shared_gated=True,
      gates_normed=False,
      balance_weight=0.001,
    ),
    vocab_size=151_936,
    d_model=2048,
    n_layers=24,
    n_heads=16,
    n_kv_heads=16,
    d_ff=1408,
    max_length=8192,
  ),
  "qwen2_57b_a14b": _of(
    "qwen2_7b",
    ExpertsConfig(
      n_experts=64,
      n_active=8,
      n_shared=8,
      shared_gated=True,
      gates_normed=False,
      balance_weight=0.001,
    ),
    vocab_size=151_936,
    d_ff=2560,
  ),
  "qwen3_30b_a3b": _of(
    "qwen3_8b",
    ExpertsConfig(n_experts=128, n_active=8, balance_weight=0.001),
    d_model=2048,
    n_layers=48,
    n_kv_heads=4,
    d_ff=768,
  ),
  # Throughline's own: the quickstart's sizes, 2 of 8 experts.
  "9m": _of(
    "3m",
    ExpertsConfig(n_experts=8, n_active=2, balance_weight=0.01),
    d_ff=256,
  ),
}
