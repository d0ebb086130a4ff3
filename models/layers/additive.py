"""Additive attention: what a recurrent layer looks at ahead of every token.

arXiv 1409.0473, section 3.1 and appendix A.1.2. A small network of one layer
compares what the units said with every token of the source. Extra letters as in
models/layers/recurrent.py; A width of that network.
"""

from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from models.cache import LayerCache
from models.layers.dense import vector, weight
from models.layers.mask import Mask
from models.layers.recurrent import Sight
from models.weights import Weight, einsum
from sharding.rules import constrain

_UNSEEN = -1e30  # a token of padding sees nothing, and must not become NaN


class Additive(nn.Module):
  """Of a layer of n_units, each of which reads n_read numbers."""

  n_units: int
  n_read: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    memory: Float[Array, "B S D"] | LayerCache,
    mask: Mask,
  ) -> tuple[Sight, LayerCache]:
    """Prepares the source, whose part of the network is the same at each token.

    Args:
      memory: of the source, or what was prepared of it before.
      mask: which token sees which of the source.

    Returns:
      the sight of it, and what to keep for later tokens.
    """
    if isinstance(memory, LayerCache):
      keys, values = memory.keys[:, 0], memory.values[:, 0]
    else:
      keys = einsum(
        "BSD,DA->BSA",
        memory,
        self._matrix("k", memory.shape[-1], self.dtype),
        self.dtype,
      )
      keys = constrain(keys, "batch", "length", "act_heads")
      values = memory
    width = values.shape[-1]
    f32 = jnp.dtype(jnp.float32)  # of what goes on in time
    w_q = self._matrix("q", self.n_units, f32)
    w_context = weight(
      self,
      "context",
      (width, self.n_read, self.n_units),
      ("embed", "gates", "heads"),
      width**-0.5,
      dtype=f32,
    )
    score = vector(self, "score", (self.n_units,), ("heads",), _spread)

    @jax.checkpoint  # else [B, S, A] is kept of every token
    def look(
      said: Float[Array, "B U"], visible: Bool[Array, "B S"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B J U"]]:
      query_BA = einsum("BD,DA->BA", said, w_q, f32)
      hidden_BSA = jnp.tanh(query_BA[:, None] + keys.astype(f32))
      logits_BS = jnp.einsum("BSA,A->BS", hidden_BSA, score.astype(f32))
      shares_BS = jax.nn.softmax(jnp.where(visible, logits_BS, _UNSEEN))
      context_BD = jnp.einsum("BS,BSD->BD", shares_BS, values.astype(f32))
      more = einsum("BD,DJU->BJU", context_BD, w_context, f32)
      return context_BD, more

    return (
      Sight(look, mask.dense()),
      LayerCache(keys[:, None], values[:, None]),
    )

  def _matrix(self, name: str, width: int, dtype: jnp.dtype) -> Weight:
    shape, axes = (width, self.n_units), ("embed", "heads")
    return weight(self, name, shape, axes, width**-0.5, dtype=dtype)


def _spread(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  return jax.random.normal(key, shape, dtype) * shape[0] ** -0.5
