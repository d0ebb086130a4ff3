"""BERT: post-norm LayerNorm, learned positions, kinds of text, both directions.

BERT: arXiv 1810.04805.  MiniLM: 2002.10957, trained to compare sentences:
1908.10084.
"""

import dataclasses
from typing import Literal

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Count, Epsilon, Fraction, Natural
from models.layers import mask, stack
from models.layers.attention import Attention
from models.layers.embed import Table, lookup
from models.layers.heads import Config as HeadsConfig
from models.layers.mlp import ACTIVATIONS, MLP
from models.layers.norm import LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes as in the paper; parameters are fp32 whatever `dtype` is."""

  vocab_size: Count = 30_522
  max_length: Count = 512  # tokens; there are no positions beyond
  d_model: Count
  n_layers: Count
  n_heads: Count
  d_ff: Count
  n_types: Natural = 2  # kinds of text, as the first and the second of a pair
  heads: HeadsConfig = HeadsConfig()
  norm_epsilon: Epsilon = 1e-12
  activation: Literal[*ACTIVATIONS] = "gelu"
  dropout: Fraction = (
    0.0  # embeddings, each residual branch, labels; 0.1 in BERT
  )
  dtype: stack.Dtype = "bfloat16"  # of the computation
  remat: stack.Remat = "none"  # what the backward pass finds saved
  scanned: bool = True  # one compiled layer; False unrolls

  def __post_init__(self):
    fields.check(self)
    if self.d_model % self.n_heads:
      raise ValueError(
        f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: "
        "the heads share the width evenly."
      )

  n_kv_heads = property(lambda self: self.n_heads)
  d_head = property(lambda self: self.d_model // self.n_heads)
  pattern = ("full",)
  window = None
  tied = True
  causal = False
  marked = False  # whether `marks` say something of tokens
  first_position = 0  # row of the table of positions where texts begin


class Block(nn.Module):
  """norm(x + attention(x)), then norm(x + mlp(x))."""

  config: Config
  kind: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    side: stack.Side,
    cache: None = None,
    lengths: None = None,
  ) -> tuple[Float[Array, "B T D"], None]:
    c = self.config
    dtype = jnp.dtype(c.dtype)
    drop = nn.Dropout(c.dropout, deterministic=side.deterministic)
    h = self.attend(x, side.mask)
    x = LayerNorm(c.norm_epsilon, name="attention_norm")(x + drop(h))
    h = MLP(c.d_ff, c.activation, dtype, biased=True, name="mlp")(x)
    x = LayerNorm(c.norm_epsilon, name="mlp_norm")(x + drop(h))
    return stack.residual(x), None

  def attend(
    self, x: Float[Array, "B T D"], seen: mask.Mask
  ) -> Float[Array, "B T D"]:
    """What kin of BERT may put something else in the place of."""
    return self.attention()(x, seen, None)[0]

  def attention(
    self, cls: type[Attention] = Attention, **settings
  ) -> Attention:
    """Attention with biases everywhere."""
    c = self.config
    return cls(
      n_heads=c.n_heads,
      n_kv_heads=c.n_kv_heads,
      d_head=c.d_head,
      dtype=jnp.dtype(c.dtype),
      qkv_biased=True,
      out_biased=True,
      name="attention",
      **settings,
    )


class Model(nn.Module):
  """Tokens to hidden states; `models.families` has the heads and the rest."""

  config: Config
  block: type[nn.Module] = Block

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    cache: None = None,
    deterministic: bool = True,
    types: Int[Array, "B T"] | None = None,
  ) -> tuple[Float[Array, "B T D"], None]:
    """Types: which kind of text each token is of; None: all of the first."""
    c = self.config
    dtype = jnp.dtype(c.dtype)
    if types is not None and not c.n_types:
      raise ValueError("types of texts need a model with n_types above 0.")
    x = lookup(Table(c.vocab_size, c.d_model, name="embed")(), tokens, dtype)
    n_rows = c.first_position + c.max_length
    rows = Table(n_rows, c.d_model, axis="position", name="position")()
    x += lookup(rows, c.first_position + positions, dtype)
    if c.n_types:
      rows = Table(c.n_types, c.d_model, axis="position", name="type")()
      x += lookup(rows, self.kinds(tokens, types), dtype)
    x = LayerNorm(c.norm_epsilon, name="norm")(x)
    x = nn.Dropout(c.dropout, deterministic=deterministic)(x)
    seen = self.seen(positions, segment_ids, types)
    layers = stack.Stack(
      self.block, c, c.n_layers, c.pattern, c.remat, c.scanned, name="stack"
    )
    return layers(x, stack.Side(seen, {}, deterministic))

  def kinds(
    self, tokens: Int[Array, "B T"], types: Int[Array, "B T"] | None
  ) -> Int[Array, "B T"]:
    """The row of the table of kinds for each token."""
    return jnp.zeros_like(tokens) if types is None else types

  def seen(
    self,
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    types: Int[Array, "B T"] | None,
  ) -> mask.Mask:
    """Who may see whom: all of a segment each other."""
    del types
    return mask.of_tokens(positions, segment_ids, causal=False)


def sized(d_model: int, n_layers: int, n_heads: int, **changes) -> dict:
  """The sizes of a preset: feed-forwards are four times as wide as the model."""
  sizes = dict(d_model=d_model, n_layers=n_layers, n_heads=n_heads)
  return {**sizes, "d_ff": 4 * d_model, **changes}


_PRETRAINED = HeadsConfig(kinds=("words", "texts"))

PRESETS = {
  # Throughline's own: the page bert_tiny.
  "1m": Config(**sized(128, 2, 4, vocab_size=4104, max_length=256)),
  "bert_base_uncased": Config(**sized(768, 12, 12), heads=_PRETRAINED),
  "bert_large_uncased": Config(**sized(1024, 24, 16), heads=_PRETRAINED),
  "bert_base_cased": Config(
    **sized(768, 12, 12, vocab_size=28_996), heads=_PRETRAINED
  ),
  "all_minilm_l6_v2": Config(
    **sized(384, 6, 12), heads=HeadsConfig(kinds=("pooled",))
  ),
}
