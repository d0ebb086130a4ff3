"""Tokens in, tokens out: one table of shape [V, D] for either."""

import typing

import flax.struct
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from models.layers.dense import weight
from models.weights import Weight, take
from sharding.rules import constrain


class Table(nn.Module):
  """Rows of width D: token embeddings, positions, or the output head."""

  n_rows: int
  d_model: int
  axis: str = "vocab"
  std: float = 0.02

  @nn.compact
  def __call__(self) -> Weight:
    shape = (self.n_rows, self.d_model)
    return weight(self, "table", shape, (self.axis, "embed"), self.std)


# Unchecked: as a pytree it also carries gradients and specs.
@typing.no_type_check
@flax.struct.dataclass
class Biased:
  """A table of the words, and what is added to the score of each."""

  table: Weight
  bias: Float[Array, "V"]


def lookup(
  table: Weight, ids: Int[Array, "B T"], dtype: jnp.dtype
) -> Float[Array, "B T D"]:
  """Rows of the table, which is first made whole along its rows.

  Looked up in a table split along its rows, XLA falls back to an "involuntary
  full rematerialization".
  """
  if isinstance(table, Array):
    table = constrain(table, None, "lookup")
    ids = constrain(ids, "lookup_batch", "length")
    rows = take(table, ids, dtype)
    rows = constrain(rows, "lookup_batch", "length", "lookup")
  else:
    rows = take(table, ids, dtype)
  return constrain(rows, "batch", "stream", "act_embed")
