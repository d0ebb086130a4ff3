"""An encoder and a decoder: one text is read whole, another is written.

Attention Is All You Need: arXiv 1706.03762. T5 and BART are made of these; they
say how a text enters and leaves, and where the norms lie.
A segment of the one text sees the segment of the same number in the other: pairs
are packed as single texts are.
"""

from typing import Any

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from models.cache import Cache, LayerCache
from models.layers import mask, stack
from models.layers.embed import Table, lookup
from models.layers.position import RelativeBias
from models.weights import Weight

ENCODER, DECODER = "encoder", "decoder"  # kinds of blocks
Text = tuple[Int[Array, "B S"], Int[Array, "B S"], Int[Array, "B S"]]


class Block(nn.Module):
  """Attention, in a decoder attention to the source, and a feed-forward.

  A family has its attention(name) and feed_forward(), and around(name, x, side,
  layer): x with what the layer makes of it, normed where it norms, and what the
  layer keeps.
  """

  config: Any
  kind: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    side: stack.Side,
    cache: LayerCache | None = None,
    lengths: Int[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
    # What is kept of the source, and of the text itself.
    source = None if cache is None else cache.source
    own = None if cache is None else cache.replace(source=None)
    attention = self.attention("attention")
    x, own = self.around(
      "attention",
      x,
      side,
      lambda h: attention(h, side.mask, None, own, lengths, bias=side.bias),
    )
    if self.kind == DECODER:
      cross = self.attention("cross")
      memory = source if side.memory is None else side.memory
      x, source = self.around(
        "cross",
        x,
        side,
        lambda h: cross(h, side.memory_mask, None, memory=memory),
      )
    mlp = self.feed_forward()
    x, _ = self.around("mlp", x, side, lambda h: (mlp(h), None))
    kept = None if own is None else own.replace(source=source)
    return stack.residual(x), kept


class Model(nn.Module):
  """Tokens to hidden states of the decoder.

  `block` is made as block(config, ENCODER or DECODER).
  """

  config: Any
  block: type[nn.Module]
  embed_std: float = 0.02

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    cache: Cache | None = None,
    deterministic: bool = True,
    source: Text | None = None,
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Reads the source, unless the cache holds it, and then the tokens.

    Args:
      tokens: of the text that is written.
      positions: of these.
      segment_ids: of these.
      cache: what was read of both texts.
      deterministic: without dropout.
      source: tokens, positions and segment_ids of the text that is read whole.

    Raises:
      ValueError: there is no source, neither here nor in the cache.
    """
    c = self.config
    table = Table(c.vocab_size, c.d_model, std=self.embed_std, name="embed")()
    if not c.tied:
      Table(c.vocab_size, c.d_model, name="head")()
    memory, source_segments = None, cache and cache.source_segments
    if source is not None:
      memory, _ = self._run(ENCODER, table, source, deterministic)
      source_segments = source[2]
    if source_segments is None:
      raise ValueError(
        "source=None: this family writes about a text that it has read. Give "
        "source=(tokens, positions, segment_ids)."
      )
    if cache is not None:
      cache = cache.replace(source_segments=source_segments)
    # Positions of two texts say nothing to each other.
    nowhere = jnp.zeros_like(source_segments)
    across = mask.Mask(
      positions, segment_ids, nowhere, source_segments, causal=False
    )
    text = tokens, positions, segment_ids
    return self._run(DECODER, table, text, deterministic, cache, memory, across)

  def _run(
    self, kind, table, text, deterministic, cache=None, memory=None, across=None
  ):
    """One of the two stacks, from tokens to hidden states."""
    c = self.config
    tokens, positions, segments = text
    drop = nn.Dropout(c.dropout, deterministic=deterministic)
    side = stack.Side(
      mask.of_tokens(positions, segments, causal=kind == DECODER),
      {},  # nothing is turned
      deterministic,
      bias=self.bias(kind),
      memory=memory,
      memory_mask=across,
    )
    name, n_layers = ("stack", c.n_layers)
    if kind == ENCODER:
      name, n_layers = ENCODER, c.n_encoder_layers
    layers = stack.Stack(
      self.block, c, n_layers, (kind,), c.remat, c.scanned, name=name
    )
    x = drop(self.enter(kind, table, tokens, positions))
    x, cache = layers(x, side, cache)
    return self.leave(kind, x), cache

  def enter(
    self, kind: str, table: Weight, tokens: Array, positions: Array
  ) -> Float[Array, "B T D"]:
    """The first hidden states of a text."""
    del kind, positions
    return lookup(table, tokens, jnp.dtype(self.config.dtype))

  def leave(self, kind: str, x: Float[Array, "B T D"]) -> Array:
    """What comes behind the last layer."""
    del kind
    return x

  def bias(self, kind: str) -> RelativeBias | None:
    """What all layers add to the logits of a text's attention to itself."""
    del kind
    return None
