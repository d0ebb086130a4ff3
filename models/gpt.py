"""GPT-2: pre-norm LayerNorm, learned positions, biases, a tied head.

Language Models are Unsupervised Multitask Learners (Radford et al., 2019). The
layers that write to the residual stream start smaller by sqrt(2 L), section 2.3.
"""

import dataclasses
from typing import Any, Literal

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Count, Epsilon, Fraction
from models.layers import decoder, stack
from models.layers.attention import Attention
from models.layers.embed import Table, lookup
from models.layers.mlp import ACTIVATIONS, MLP
from models.layers.norm import LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(decoder.Config):
  """Sizes as in the paper; parameters are fp32 whatever `dtype` is."""

  vocab_size: Count = 50_257
  max_length: Count = 1024  # tokens; there are no positions beyond
  d_model: Count
  n_layers: Count
  n_heads: Count
  d_ff: Count
  norm_epsilon: Epsilon = 1e-5
  activation: Literal[*ACTIVATIONS] = "gelu_tanh"
  dropout: Fraction = 0.0  # embeddings and each residual branch; 0.1 in GPT-2
  dtype: stack.Dtype = "bfloat16"  # of the computation
  remat: stack.Remat = "none"  # what the backward pass finds saved
  scanned: bool = True  # one compiled layer; False unrolls, for decoding

  def __post_init__(self):
    fields.check(self)
    if self.d_model % self.n_heads:
      raise ValueError(
        f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: "
        "the heads share the width evenly."
      )

  # What a decoder-only architecture tells the cache and the FLOP count.
  n_kv_heads = property(lambda self: self.n_heads)
  d_head = property(lambda self: self.d_model // self.n_heads)
  kept = property(lambda self: (self.n_kv_heads, self.d_head, self.d_head))
  pattern = ("full",)
  window = None
  tied = True
  # What its kin have otherwise.
  biased = True  # all matrices have biases
  alibi = False  # in the place of positions, attention fades with the distance


class Block(decoder.Block):
  """x + attention(norm x), then x + mlp(norm x)."""

  @staticmethod
  def norm(config: Any, name: str) -> nn.Module:
    """LayerNorm with a bias."""
    return LayerNorm(config.norm_epsilon, name=name)

  def self_attention(self) -> nn.Module:
    """Queries, keys and values, of which groups of heads may share some."""
    c = self.config
    return Attention(
      n_heads=c.n_heads,
      n_kv_heads=c.n_kv_heads,
      d_head=c.d_head,
      dtype=jnp.dtype(c.dtype),
      qkv_biased=c.biased,
      out_biased=c.biased,
      alibi=c.alibi,
      out_std=self.out_std,
      name="attention",
    )

  def feed_forward(
    self, x: Float[Array, "B T D"], side: stack.Side
  ) -> Float[Array, "B T D"]:
    """Two matrices around an activation."""
    del side
    c = self.config
    return MLP(
      c.d_ff,
      c.activation,
      jnp.dtype(c.dtype),
      biased=c.biased,
      out_std=self.out_std,
      name="mlp",
    )(x)

  @property
  def out_std(self) -> float:
    """Of what writes to the residual stream, at the start."""
    return 0.02 / (2 * self.config.n_layers) ** 0.5


class Model(decoder.Model):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block

  n_unused = 0  # rows of the table of positions ahead of the first one's

  def enter(
    self,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    """Learned positions are added."""
    c = self.config
    n_rows = c.max_length + self.n_unused
    table = Table(n_rows, c.d_model, "position", 0.01, name="position")()
    x += lookup(table, positions + self.n_unused, jnp.dtype(c.dtype))
    return nn.Dropout(c.dropout, deterministic=deterministic)(x)


def _gpt2(d_model: int, n_layers: int, n_heads: int) -> Config:
  return Config(
    d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model
  )


PRESETS = {
  "gpt2_124m": _gpt2(768, 12, 12),
  "gpt2_355m": _gpt2(1024, 24, 16),
  "gpt2_774m": _gpt2(1280, 36, 20),
  "gpt2_1558m": _gpt2(1600, 48, 25),
}
