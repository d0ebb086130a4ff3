"""BART: an encoder and a decoder, learned positions, norms behind the layers.

arXiv 1910.13461. Dropout is on embeddings and residual branches.
"""

import dataclasses
from typing import Literal

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from configs import fields
from configs.ranges import Count, Epsilon, Fraction, Natural
from models.layers import pair, stack
from models.layers.attention import Attention
from models.layers.embed import Table, lookup
from models.layers.mlp import ACTIVATIONS, MLP
from models.layers.norm import LayerNorm
from models.weights import Weight

OFFSET = 2  # rows of a table of positions that no position has


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes as in the paper; parameters are fp32 whatever `dtype` is."""

  vocab_size: Count = 50_265
  max_length: Count = 1024  # tokens; there are no positions beyond
  d_model: Count
  n_encoder_layers: Count
  n_layers: Count  # of the decoder
  n_heads: Count
  d_ff: Count
  norm_epsilon: Epsilon = 1e-5
  activation: Literal[*ACTIVATIONS] = "gelu"
  start_id: Natural = 2  # that a written text begins with: that of its end
  dropout: Fraction = 0.0  # embeddings and each residual branch; 0.1 in BART
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

  # What the decoder tells the cache and the FLOP count.
  n_kv_heads = property(lambda self: self.n_heads)
  d_head = property(lambda self: self.d_model // self.n_heads)
  kept = property(lambda self: (self.n_heads, self.d_head, self.d_head))
  pattern = (pair.DECODER,)
  window = None
  tied = True


class Block(pair.Block):
  """norm(x + layer(x)), for each of its layers."""

  def around(self, name, x, side, layer):
    """The norm comes last."""
    c = self.config
    out, kept = layer(x)
    x += nn.Dropout(c.dropout, deterministic=side.deterministic)(out)
    return LayerNorm(c.norm_epsilon, name=f"{name}_norm")(x), kept

  def attention(self, name):
    """Biased all over."""
    c = self.config
    return Attention(
      n_heads=c.n_heads,
      n_kv_heads=c.n_heads,
      d_head=c.d_head,
      dtype=jnp.dtype(c.dtype),
      qkv_biased=True,
      out_biased=True,
      name=name,
    )

  def feed_forward(self):
    """Plain, and biased."""
    c = self.config
    return MLP(
      c.d_ff, c.activation, jnp.dtype(c.dtype), biased=True, name="mlp"
    )


class Model(pair.Model):
  """Tokens to hidden states; `models.families` has the head and the rest."""

  block: type[nn.Module] = Block

  def enter(
    self, kind: str, table: Weight, tokens: Array, positions: Array
  ) -> Float[Array, "B T D"]:
    """Tokens and positions, normed."""
    c, prefix = self.config, "" if kind == pair.DECODER else "encoder_"
    place = Table(
      c.max_length + OFFSET,
      c.d_model,
      axis="position",
      name=f"{prefix}position",
    )()
    dtype = jnp.dtype(c.dtype)
    x = lookup(table, tokens, dtype) + lookup(place, positions + OFFSET, dtype)
    return LayerNorm(c.norm_epsilon, name=f"{prefix}embed_norm")(x)


def _bart(d_model: int, n_layers: int, n_heads: int) -> Config:
  return Config(
    d_model=d_model,
    n_encoder_layers=n_layers,
    n_layers=n_layers,
    n_heads=n_heads,
    d_ff=4 * d_model,
  )


PRESETS = {
  # Throughline's own: about the quickstart's sizes.
  "5m": dataclasses.replace(
    _bart(192, 4, 6), vocab_size=4096, max_length=512, start_id=1
  ),
  "bart_base": _bart(768, 6, 12),
  "bart_large": _bart(1024, 12, 16),
  # The checkpoint fine-tuned on CNN/DailyMail has one id less.
  "bart_large_cnn": dataclasses.replace(_bart(1024, 12, 16), vocab_size=50_264),
}
