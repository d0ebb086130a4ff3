"""Recurrent language models: a stack of Elman's, LSTM or GRU layers.

Recurrent neural network based language model: Mikolov and others, 2010. Dropout
as in arXiv 1409.2329, on what goes up and never on what goes on in time.
"""

import dataclasses
from typing import Any, Literal

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Count, Fraction
from models.cache import LayerState
from models.layers import decoder, position, recurrent, stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recurrent.Kept, decoder.Config):
  """All layers are as wide as the embedding; parameters are fp32."""

  vocab_size: Count
  cell: Literal[*recurrent.CELLS] = "lstm"
  d_model: Count
  n_layers: Count
  max_length: position.Length = 2048  # tokens; the longest text it shall read
  tied: bool = True  # the output head is the embedding; not in 1409.2329
  dropout: Fraction = 0.0  # on embeddings and what each layer says
  dtype: stack.Dtype = (
    "bfloat16"  # of products of all tokens; in time it is fp32
  )
  remat: stack.Remat = "none"  # what the backward pass finds saved
  scanned: bool = True  # one compiled layer; False unrolls, for decoding

  def __post_init__(self):
    fields.check(self)


class Block(decoder.Block):
  """One layer, and nothing beside it."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    side: stack.Side,
    cache: LayerState | None = None,
    lengths: Int[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B T D"], LayerState | None]:
    c = self.config
    drop = nn.Dropout(c.dropout, deterministic=side.deterministic)
    layer = recurrent.Layer(
      c.cell, c.d_model, jnp.dtype(c.dtype), name="recurrent"
    )
    (h, _), cache = layer(x, side.mask, cache)
    return stack.residual(drop(h)), cache

  @staticmethod
  def norm(config: Any, name: str) -> Any:
    """None: what units say lies between -1 and 1."""
    del config, name
    return lambda x: x


class Model(decoder.Model):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block
  # What comes in small leaves two layers smaller still: at 0.02 it is lost.
  embed_std: float = 0.3

  def enter(
    self,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    """The embedding drops out too."""
    del positions
    return nn.Dropout(self.config.dropout, deterministic=deterministic)(x)


def _zaremba(d_model: int, dropout: float) -> Config:
  """Of the Penn Treebank, without the bias of the head."""
  return Config(
    vocab_size=10_000,
    d_model=d_model,
    n_layers=2,
    tied=False,
    dropout=dropout,
  )


PRESETS = {
  # Throughline's own: about the quickstart's sizes.
  "3m": Config(vocab_size=4096, d_model=320, n_layers=2),
  "zaremba_medium": _zaremba(650, 0.5),
  "zaremba_large": _zaremba(1500, 0.65),
}
