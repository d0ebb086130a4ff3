"""GPT-2: pre-norm LayerNorm, learned positions, biases, a tied head.

Language Models are Unsupervised Multitask Learners (Radford et al., 2019). The
layers that write to the residual stream start smaller by sqrt(2 L), section 2.3.
"""

import dataclasses
from typing import Literal

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Count, Epsilon, Fraction
from models.cache import Cache, LayerCache
from models.layers import mask, stack
from models.layers.attention import Attention
from models.layers.embed import Table, lookup
from models.layers.mlp import ACTIVATIONS, MLP
from models.layers.norm import LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
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
  kept = property(lambda self: (self.n_heads, self.d_head, self.d_head))
  pattern = ("full",)
  window = None
  tied = True


class Model(nn.Module):
  """Tokens to hidden states; `models.families` has the head and the rest."""

  config: Config

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    cache: Cache | None = None,
    deterministic: bool = True,
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    c = self.config
    dtype = jnp.dtype(c.dtype)
    embed = Table(c.vocab_size, c.d_model, name="embed")()
    position = Table(
      c.max_length, c.d_model, axis="position", std=0.01, name="position"
    )()
    x = lookup(embed, tokens, dtype) + lookup(position, positions, dtype)
    x = nn.Dropout(c.dropout, deterministic=deterministic)(x)
    side = stack.Side(
      mask.of_tokens(positions, segment_ids), None, deterministic
    )
    layers = stack.Stack(
      Block, c, c.n_layers, c.pattern, c.remat, c.scanned, name="stack"
    )
    x, cache = layers(x, side, cache)
    return LayerNorm(c.norm_epsilon, name="norm")(x), cache


class Block(nn.Module):
  """x + attention(norm x), then x + mlp(norm x)."""

  config: Config
  kind: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    side: stack.Side,
    cache: LayerCache | None = None,
    lengths: Int[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
    c = self.config
    dtype = jnp.dtype(c.dtype)
    out_std = 0.02 / (2 * c.n_layers) ** 0.5
    attention = Attention(
      n_heads=c.n_heads,
      n_kv_heads=c.n_kv_heads,
      d_head=c.d_head,
      dtype=dtype,
      qkv_biased=True,
      out_biased=True,
      out_std=out_std,
      name="attention",
    )
    mlp = MLP(
      c.d_ff, c.activation, dtype, biased=True, out_std=out_std, name="mlp"
    )
    drop = nn.Dropout(c.dropout, deterministic=side.deterministic)
    h = LayerNorm(c.norm_epsilon, name="attention_norm")(x)
    h, cache = attention(h, side.mask, None, cache, lengths)
    x += drop(h)
    x += drop(mlp(LayerNorm(c.norm_epsilon, name="mlp_norm")(x)))
    return stack.residual(x), cache


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
