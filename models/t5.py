"""T5: an encoder and a decoder, positions as a bias by distance, no scaling.

T5: arXiv 1910.10683.  T5 1.1 (gated GELU, a head of its own): 2002.05202, and
the checkpoints of that name.  FLAN-T5: 2210.11416.
Dropout is on embeddings and residual branches, not within them.
"""

import dataclasses
from typing import Annotated, Literal

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from configs import fields
from configs.ranges import Count, Epsilon, Fraction, Natural
from models.layers import pair, stack
from models.layers.attention import Attention
from models.layers.dense import weight
from models.layers.mlp import ACTIVATIONS, MLP
from models.layers.norm import RMSNorm
from models.layers.position import Length, RelativeBias
from models.weights import Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes as in the paper; parameters are fp32 whatever `dtype` is."""

  vocab_size: Count = 32_128
  d_model: Count
  n_encoder_layers: Count
  n_layers: Count  # of the decoder
  n_heads: Count
  d_head: Count = 64
  d_ff: Count
  max_length: Length = 512  # tokens of either text; as it was trained
  # Of distances between tokens, a number per head.
  n_buckets: Annotated[int, "[4, inf)"] = 32
  farthest: Count = 128  # tokens; what lies beyond has one bucket
  norm_epsilon: Epsilon = 1e-6
  activation: Literal[*ACTIVATIONS] = "relu"  # 1.1: gelu_tanh
  gated: bool = False  # 1.1
  tied: bool = True  # the output head is the embedding, scaled; not in 1.1
  start_id: Natural = 0  # that a written text begins with: padding's
  dropout: Fraction = 0.0  # embeddings and each residual branch; 0.1 in 1.0
  dtype: stack.Dtype = "bfloat16"  # of the computation
  remat: stack.Remat = "none"  # what the backward pass finds saved
  scanned: bool = True  # one compiled layer; False unrolls, for decoding

  def __post_init__(self):
    fields.check(self)
    if self.n_buckets % 4:
      raise ValueError(
        f"n_buckets={self.n_buckets} is no multiple of 4: keys ahead and behind "
        "share them, and of each half are exact distances."
      )
    if self.farthest <= self.n_buckets // 2:
      raise ValueError(
        f"farthest={self.farthest} with n_buckets={self.n_buckets}: half of the "
        "buckets are exact distances, and the others lie beyond; give more "
        f"than {self.n_buckets // 2}."
      )

  # What the decoder tells the cache and the FLOP count.
  n_kv_heads = property(lambda self: self.n_heads)
  kept = property(lambda self: (self.n_heads, self.d_head, self.d_head))
  pattern = (pair.DECODER,)
  window = None


class Block(pair.Block):
  """x + layer(norm x), for each of its layers."""

  def around(self, name, x, side, layer):
    """The norm comes first."""
    c = self.config
    out, kept = layer(RMSNorm(c.norm_epsilon, name=f"{name}_norm")(x))
    return x + nn.Dropout(c.dropout, deterministic=side.deterministic)(
      out
    ), kept

  def attention(self, name):
    """Logits are not scaled: queries start smaller in place of that."""
    c = self.config
    return Attention(
      n_heads=c.n_heads,
      n_kv_heads=c.n_heads,
      d_head=c.d_head,
      dtype=jnp.dtype(c.dtype),
      scale=1.0,
      q_std=(c.d_model * c.d_head) ** -0.5,
      kv_std=c.d_model**-0.5,
      out_std=(c.n_heads * c.d_head) ** -0.5,
      name=name,
    )

  def feed_forward(self):
    """Plain, or gated."""
    c = self.config
    return MLP(
      c.d_ff,
      c.activation,
      jnp.dtype(c.dtype),
      gated=c.gated,
      in_std=c.d_model**-0.5,
      out_std=c.d_ff**-0.5,
      name="mlp",
    )


class Model(pair.Model):
  """Tokens to hidden states; `models.families` has the head and the rest."""

  block: type[nn.Module] = Block
  embed_std: float = 1.0

  def leave(self, kind: str, x: Float[Array, "B T D"]) -> Array:
    """Normed; before a tied head, whose rows are of norm sqrt(D), scaled."""
    c = self.config
    name = "norm" if kind == pair.DECODER else "encoder_norm"
    x = RMSNorm(c.norm_epsilon, name=name)(x)
    return x * c.d_model**-0.5 if c.tied and kind == pair.DECODER else x

  def bias(self, kind: str) -> RelativeBias:
    """Of the first layer in the paper, which all others share."""
    c = self.config
    table = Buckets(
      c.n_buckets, c.n_heads, c.d_model**-0.5, name=f"{kind}_buckets"
    )()
    return RelativeBias(table, causal=kind == pair.DECODER, farthest=c.farthest)


class Buckets(nn.Module):
  """A number for every bucket of distances and every head."""

  n_buckets: int
  n_heads: int
  std: float

  @nn.compact
  def __call__(self) -> Weight:
    shape = (self.n_buckets, self.n_heads)
    return weight(self, "table", shape, ("position", "heads"), self.std)


def _t5(d_model: int, n_layers: int, n_heads: int, d_ff: int, **rest) -> Config:
  return Config(
    d_model=d_model,
    n_encoder_layers=n_layers,
    n_layers=n_layers,
    n_heads=n_heads,
    d_ff=d_ff,
    **rest,
  )


_V1_1 = dict(activation="gelu_tanh", gated=True, tied=False)

PRESETS = {
  # Throughline's own: about the quickstart's sizes.
  "5m": _t5(
    192,
    4,
    6,
    512,
    d_head=32,
    vocab_size=4096,
    start_id=1,
    activation="gelu_tanh",
    gated=True,
  ),
  "t5_small": _t5(512, 6, 8, 2048),
  "t5_base": _t5(768, 12, 12, 3072),
  "t5_large": _t5(1024, 24, 16, 4096),
  "t5_3b": _t5(1024, 24, 32, 16_384, d_head=128),
  "t5_11b": _t5(1024, 24, 128, 65_536, d_head=128),
  "t5_v1_1_small": _t5(512, 8, 6, 1024, **_V1_1),
  "t5_v1_1_base": _t5(768, 12, 12, 2048, **_V1_1),
  "t5_v1_1_large": _t5(1024, 24, 16, 2816, **_V1_1),
  "t5_v1_1_xl": _t5(2048, 24, 32, 5120, **_V1_1),
  "t5_v1_1_xxl": _t5(4096, 24, 64, 10_240, **_V1_1),
}
