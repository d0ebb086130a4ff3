"""Mamba-2: layers whose memory is a state, and no attention.

arXiv 2405.21060.
"""

import dataclasses

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Count, Epsilon, Fraction
from models.cache import LayerState, Memory
from models.layers import decoder, position, ssm, stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(decoder.Config):
  """Sizes as in the paper; parameters are fp32 whatever `dtype` is."""

  vocab_size: Count
  d_model: Count
  n_layers: Count
  n_heads: Count
  d_head: Count = 64
  mixer: ssm.Config = ssm.Config()
  max_length: position.Length = 2048  # tokens; the longest text it shall read
  norm_epsilon: Epsilon = 1e-5
  tied: bool = True  # the output head is the embedding
  dropout: Fraction = 0.0  # on each residual branch
  dtype: stack.Dtype = "bfloat16"  # of the computation
  remat: stack.Remat = "none"  # what the backward pass finds saved
  scanned: bool = True  # one compiled layer; False unrolls, for decoding

  def __post_init__(self):
    fields.check(self)
    if self.n_heads % self.mixer.n_groups:
      raise ValueError(
        f"n_heads={self.n_heads} is not a multiple of mixer.n_groups="
        f"{self.mixer.n_groups}: every group has the same number of heads."
      )

  # What a decoder-only architecture tells the cache and the FLOP count.
  pattern = ("state",)
  window = None

  @property
  def state(self) -> Memory:
    """What decoding keeps: inputs of the convolution, and a state per head."""
    m = self.mixer
    groups = (m.n_groups, m.d_state)
    heads = (self.n_heads, self.d_head)
    return Memory(
      {"x": heads, "b": groups, "c": groups},
      m.n_taps - 1,
      (*heads, m.d_state),
      # It is added to, and read.
      n_flops=4.0 * self.n_heads * self.d_head * m.d_state,
    )


class Block(decoder.Block):
  """x + mixer(norm x)."""

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
    mixer = ssm.Mixer(
      c.mixer,
      c.n_heads,
      c.d_head,
      jnp.dtype(c.dtype),
      c.norm_epsilon,
      name="mixer",
    )
    h, cache = mixer(self.before("mixer", x), side.mask, cache)
    return stack.residual(x + drop(h)), cache


class Model(decoder.Model):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block


def _mamba2(d_model: int, n_layers: int) -> Config:
  return Config(
    vocab_size=50_288, d_model=d_model, n_layers=n_layers, n_heads=d_model // 32
  )


PRESETS = {
  "mamba2_130m": _mamba2(768, 24),
  "mamba2_370m": _mamba2(1024, 48),
  "mamba2_780m": _mamba2(1536, 48),
  "mamba2_1_3b": _mamba2(2048, 48),
  "mamba2_2_7b": _mamba2(2560, 64),
  "codestral_mamba_7b": Config(
    vocab_size=32_768,
    d_model=4096,
    n_layers=64,
    n_heads=128,
    mixer=ssm.Config(n_groups=8),
    tied=False,
  ),
}
