"""Feed-forward layers: plain, and gated (arXiv 2002.05202)."""

import functools

import jax
from flax import linen as nn
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from models.layers.dense import add_bias, vector, weight
from models.weights import einsum
from sharding.rules import constrain

ACTIVATIONS = {
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class MLP(nn.Module):
  """down(act(up x)), or down(act(gate x) * up x) when gated."""

  d_ff: int
  activation: str
  dtype: jnp.dtype
  gated: bool = False
  biased: bool = False
  in_std: float = 0.02
  out_std: float = 0.02

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    d_model = x.shape[-1]
    act = ACTIVATIONS[self.activation]

    def widen(name):
      w = weight(
        self,
        name,
        (d_model, self.d_ff),
        ("embed", "mlp"),
        self.in_std,
        dtype=self.dtype,
      )
      y_BTF = einsum("BTD,DF->BTF", x, w, self.dtype)
      if self.biased:
        bias = vector(self, f"{name}_bias", (self.d_ff,), ("mlp",))
        y_BTF = add_bias(y_BTF, bias)
      y_BTF = constrain(y_BTF, "batch", "length", "act_mlp")
      return checkpoint_name(y_BTF, "widened")

    h_BTF = act(widen("gate")) * widen("up") if self.gated else act(widen("up"))
    w = weight(
      self,
      "down",
      (self.d_ff, d_model),
      ("mlp", "embed"),
      self.out_std,
      dtype=self.dtype,
    )
    out = einsum("BTF,FD->BTD", h_BTF, w, self.dtype)
    out = constrain(out, "batch", "stream", "act_embed")
    if self.biased:
      out = add_bias(out, vector(self, "down_bias", (d_model,), ("norm",)))
    return out
