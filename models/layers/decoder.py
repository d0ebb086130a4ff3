"""What decoder-only architectures share: a block, and tokens to hidden states.

A family says by methods which norm, attention and feed-forward it has, and
what happens before and after them.
Parallel branches: GPT-J; PaLM, arXiv 2204.02311.
"""

import dataclasses
from typing import Any, Literal

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from models.cache import Cache, LayerCache
from models.layers import mask, position, stack
from models.layers.embed import Table, lookup
from models.layers.heads import Labels
from models.layers.norm import RMSNorm
from models.layers.position import Rotary

# How attention and feed-forward come to the residual stream: one after the
# other, side by side with a norm each, or side by side behind one norm.
Branches = Literal["sequential", "parallel", "shared"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What any of them may have in the place of the head of words."""

  heads: Labels = Labels()


class Block(nn.Module):
  """x + attention(norm x), then x + mlp(norm x), or both at once.

  A family adds `self_attention`, which gives the module that maps (x, mask,
  rotary, cache, lengths) to (x, cache), and `feed_forward` of (x, side) to x.
  """

  config: Any
  kind: str

  branches = "sequential"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    side: stack.Side,
    cache: LayerCache | None = None,
    lengths: Int[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
    drop = nn.Dropout(self.config.dropout, deterministic=side.deterministic)
    normed = self.before("attention", x)
    rotary = side.rotary.get(self.kind)
    attended, cache = self.self_attention()(
      normed, side.mask, rotary, cache, lengths
    )
    attended = drop(self.after("attention", attended))
    if self.branches == "sequential":
      x += attended
    if self.branches != "shared":
      normed = self.before("mlp", x)
    x += drop(self.after("mlp", self.feed_forward(normed, side)))
    if self.branches != "sequential":
      x += attended
    return stack.residual(x), cache

  @staticmethod
  def norm(config: Any, name: str) -> nn.Module:
    """The norm of the family, also behind the last layer."""
    return RMSNorm(config.norm_epsilon, name=name)

  def before(
    self, branch: str, x: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """What a branch reads of the residual stream."""
    return self.norm(self.config, f"{branch}_norm")(x)

  def after(
    self, branch: str, h: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """What a branch adds to the residual stream."""
    del branch
    return h


class Model(nn.Module):
  """Tokens to hidden states; `models.families` has the head and the rest."""

  config: Any
  block: type[nn.Module] = Block
  embed_std: float = 0.02

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    cache: Cache | None = None,
    deterministic: bool = True,
    prefix: Int[Array, "B T"] | None = None,
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    c = self.config
    table = Table(c.vocab_size, c.d_model, std=self.embed_std, name="embed")()
    if not (c.tied or c.heads.kinds):
      Table(c.vocab_size, c.d_model, name="head")()
    x = lookup(table, tokens, jnp.dtype(c.dtype))
    x = self.enter(x, positions, deterministic)
    seen = mask.of_tokens(positions, segment_ids, prefix=prefix)
    side = stack.Side(seen, self.rotary(positions), deterministic)
    x, cache = self.layers(x, side, cache)
    hidden = self.block.norm(c, "norm")(x)
    self.beside(hidden, table, tokens, side)
    return hidden, cache

  def enter(
    self,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    """Rows of the embedding as the first layer reads them."""
    del positions, deterministic
    return x

  def rotary(self, positions: Int[Array, "B T"]) -> dict[str, Rotary]:
    """The phases by which each kind of layer turns queries and keys, if any."""
    del positions
    return {}

  def layers(
    self, x: Float[Array, "B T D"], side: stack.Side, cache: Cache | None
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    """All layers."""
    c = self.config
    layers = stack.Stack(
      self.block, c, c.n_layers, c.pattern, c.remat, c.scanned, name="stack"
    )
    return layers(x, side, cache)

  def beside(
    self,
    hidden: Float[Array, "B T D"],
    table: Any,
    tokens: Int[Array, "B T"],
    side: stack.Side,
  ) -> None:
    """What a family computes beside the hidden states, and sows."""


class RotaryModel(Model):
  """The same phases in all layers, but for those that are called "unrotated"."""

  def rotary(self, positions: Int[Array, "B T"]) -> dict[str, Rotary]:
    """Of the first d_rotary dimensions of a head."""
    c = self.config
    phases = position.rotary(
      positions, c.d_rotary, c.rope_theta, c.rope_scaling, c.max_length
    )
    return {kind: phases for kind in c.pattern if kind != "unrotated"}
