"""What a model is asked for at its end, of every token.

What is asked of a text as a whole is read off its first token, or off its last
one where a token sees those before it alone; what is asked of a text's meaning is
the mean of its tokens (Sentence-BERT, arXiv 1908.10084).
"""

import dataclasses
from typing import Literal

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Count
from models.layers.dense import add_bias, vector, weight
from models.layers.mlp import ACTIVATIONS
from models.layers.norm import LayerNorm
from models.weights import einsum

# words   what the table of all words is compared with, and a bias for each
# pooled  a vector for the text
# texts   scores of the text's labels, from that vector
# tokens  scores of the token's labels
# spans   scores of the token as the first and as the last of an answer
Kind = Literal["words", "pooled", "texts", "tokens", "spans"]
_OF_TEXTS = ("pooled", "texts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
  """The heads of a model that reads one way; with any, it writes no words."""

  kinds: tuple[Literal["texts", "tokens"], ...] = ()
  n_labels: Count = 2  # of texts and of tokens

  def __post_init__(self):
    fields.check(self)
    if len({*self.kinds}) < len(self.kinds):
      raise ValueError(f"kinds={self.kinds} names one twice.")
    if self.n_labels != 2 and not {*self.kinds} & {"texts", "tokens"}:
      raise ValueError(
        f"n_labels={self.n_labels} with kinds={self.kinds}: only texts and "
        "tokens have labels. Leave it out, or ask for one of them."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Labels):
  """Which heads there are, and of what size."""

  kinds: tuple[Kind, ...] = ("words",)
  # Of the vector for the text; relu in DistilBERT, gelu_tanh in BigBird.
  pooling: Literal["tanh", *ACTIVATIONS] = "tanh"


class Head(nn.Module):
  """One of the heads of a model's config, which has them all in `heads`."""

  config: Config
  activation: str  # of words
  epsilon: float
  dropout: float  # ahead of labels
  dtype: jnp.dtype
  vocab_size: int

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, "B T D"],
    kind: Kind,
    deterministic: bool = True,
  ) -> Float[Array, "B T W"]:
    """Scores in fp32; of words, what the table is yet to be compared with."""
    c, dtype = self.config, self.dtype
    d_model = hidden.shape[-1]
    x = hidden
    if kind == "words":
      x = Affine(d_model, dtype, name="words")(x)
      x = ACTIVATIONS[self.activation](x)
      vector(self, "words_bias", (self.vocab_size,), ("vocab",))
      return LayerNorm(self.epsilon, name="words_norm")(x)
    if kind in _OF_TEXTS:
      x = Affine(d_model, dtype, name="pooled")(x)
      x = {"tanh": jnp.tanh, **ACTIVATIONS}[c.pooling](x)
      if kind == "pooled":
        return x.astype(jnp.float32)
    if kind != "spans":
      x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
    n = 2 if kind == "spans" else c.n_labels
    return Affine(n, dtype, jnp.dtype("float32"), True, name=kind)(x)


class Scores(nn.Module):
  """As `Head`, straight off what the last layer says; of texts without a bias."""

  config: Labels
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, "B T D"],
    kind: Kind,
    deterministic: bool = True,
  ) -> Float[Array, "B T W"]:
    """Scores of the labels in fp32."""
    x = nn.Dropout(self.dropout, deterministic=deterministic)(hidden)
    width, fp32 = self.config.n_labels, jnp.dtype("float32")
    biased = kind == "tokens"
    return Affine(width, self.dtype, fp32, True, biased, name=kind)(x)


class Affine(nn.Module):
  """x W + b."""

  width: int
  dtype: jnp.dtype
  out_dtype: jnp.dtype | None = None  # None: `dtype`
  is_labels: bool = False  # what comes out; else as wide as the model
  biased: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T W"]:
    of_w, of_bias = ("labels",) * 2 if self.is_labels else ("embed_out", "norm")
    shape, axes = (x.shape[-1], self.width), ("embed", of_w)
    w = weight(self, "w", shape, axes, dtype=self.dtype)
    y = einsum("BTD,DW->BTW", x, w, self.dtype, self.out_dtype)
    if not self.biased:
      return y
    return add_bias(y, vector(self, "bias", (self.width,), (of_bias,)))


def mean(
  hidden: Float[Array, "B T D"], segment_ids: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
  """For every token the mean over its segment, fp32; padding gives zeros."""
  length = hidden.shape[1]

  def of_row(x_TD, segments_T):
    real_T1 = jnp.not_equal(segments_T, 0)[:, None].astype(jnp.float32)
    add = lambda x: jax.ops.segment_sum(x, segments_T, length + 1)  # noqa: E731
    total, count = add(x_TD * real_T1), add(real_T1)
    return (total / jnp.maximum(count, 1))[segments_T]

  return jax.vmap(of_row)(hidden.astype(jnp.float32), segment_ids)


def last(
  x: Float[Array, "B T W"],
  positions: Int[Array, "B T"],
  segment_ids: Int[Array, "B T"],
) -> Float[Array, "B T W"]:
  """For every token what the last one of its segment has, in whatever order."""
  length = x.shape[1]

  def of_row(x_TW, positions_T, segments_T):
    most_S = jax.ops.segment_max(positions_T, segments_T, length + 1)
    is_last_T = jnp.equal(positions_T, most_S[segments_T])
    # One of each segment; padding, where there may be several, says nothing.
    places_T = jnp.where(is_last_T, jnp.arange(length), 0)
    place_S = jax.ops.segment_max(places_T, segments_T, length + 1)
    return x_TW[place_S[segments_T]]

  return jax.vmap(of_row)(x, positions, segment_ids)
