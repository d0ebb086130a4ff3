"""RNNsearch: a recurrent encoder and decoder, and the first attention.

Neural Machine Translation by Jointly Learning to Align and Translate, arXiv
1409.0473. Deviations: layers may be stacked, and cells chosen; a decoder begins
at zero and not at what the encoder read last; a direction of the encoder is half
as wide as the decoder, so that both together are as wide.
"""

import dataclasses
from typing import Literal

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Count, Fraction, Natural
from models.cache import LayerState
from models.layers import pair, position, recurrent, stack
from models.layers.additive import Additive
from models.layers.dense import vector, weight
from models.weights import einsum
from sharding.rules import constrain

N_POOLED = 2  # numbers of which a maxout takes the larger


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recurrent.Kept):
  """All layers are as wide as the embedding; parameters are fp32."""

  vocab_size: Count
  cell: Literal[*recurrent.CELLS] = "gru"
  d_model: Count
  n_encoder_layers: Count = 1  # each of two directions
  n_layers: Count = 1  # of the decoder
  max_length: position.Length = 512  # tokens of either text
  tied: bool = False  # the output head is the embedding
  start_id: Natural = 1  # that a written text begins with
  dropout: Fraction = 0.0  # on embeddings and what each layer says
  dtype: stack.Dtype = (
    "bfloat16"  # of products of all tokens; in time it is fp32
  )
  remat: stack.Remat = "none"  # what the backward pass finds saved
  scanned: bool = True  # one compiled layer; False unrolls, for decoding

  def __post_init__(self):
    fields.check(self)
    if self.d_model % 2:
      raise ValueError(
        f"d_model={self.d_model} is odd: each direction of the encoder has half."
      )


class Block(nn.Module):
  """A layer of the encoder, in both directions, or of the decoder."""

  config: Config
  kind: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    side: stack.Side,
    cache: LayerState | None = None,
    lengths: Int[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B T D"], LayerState | None]:
    drop = nn.Dropout(self.config.dropout, deterministic=side.deterministic)
    if self.kind == pair.ENCODER:
      h, kept = self._read(x, side), None
    else:
      h, kept = self._write(x, side, cache)
    return stack.residual(drop(h)), kept

  def _read(
    self, x: Float[Array, "B T D"], side: stack.Side
  ) -> Float[Array, "B T D"]:
    half = self.config.d_model // 2
    said = []
    for name, backward in (("ahead", False), ("behind", True)):
      layer = self._layer(name, half, backward=backward)
      (h, _), _ = layer(x, side.mask)
      said.append(h)
    return jnp.concatenate(said, axis=-1)

  def _write(
    self, x: Float[Array, "B T D"], side: stack.Side, cache: LayerState | None
  ) -> tuple[Float[Array, "B T D"], LayerState | None]:
    c = self.config
    cross = Additive(
      c.d_model,
      recurrent.CELLS[c.cell].n_read,
      jnp.dtype(c.dtype),
      name="cross",
    )
    memory = cache.source if side.memory is None else side.memory
    sight, source = cross(memory, side.memory_mask)
    layer = self._layer("recurrent", c.d_model)
    (said, seen), cache = layer(x, side.mask, cache, sight)
    if cache is not None:
      cache = cache.replace(source=source)
    return self._out(x, said, seen), cache

  def _layer(self, name: str, width: int, **kind) -> recurrent.Layer:
    c = self.config
    return recurrent.Layer(c.cell, width, jnp.dtype(c.dtype), name=name, **kind)

  def _out(self, *parts: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The larger of two sums over the token, what was said and what was seen."""
    c, width = self.config, self.config.d_model
    dtype = jnp.dtype(c.dtype)
    shape, axes = (width, N_POOLED, width), ("embed", "gates", "heads")
    std = (len(parts) * width) ** -0.5
    total = vector(self, "out_bias", shape[1:], axes[1:])[None, None]
    for name, part in zip(("token", "said", "seen"), parts, strict=True):
      w = weight(self, f"out_{name}", shape, axes, std, dtype=dtype)
      total += einsum("BTD,DJU->BTJU", part, w, dtype, jnp.float32)
    total = constrain(total, "batch", "length", None, "act_heads")
    return total.max(2).astype(dtype)


class Model(pair.Model):
  """Tokens to hidden states; `models.families` has the head and the rest."""

  block: type[nn.Module] = Block
  embed_std: float = 0.3


PRESETS = {
  # Throughline's own: about the quickstart's sizes.
  "4m": Config(vocab_size=4096, d_model=288),
}
