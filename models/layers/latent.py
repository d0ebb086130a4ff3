"""Multi-head latent attention: keys and values come from one small vector.

DeepSeek-V2, arXiv 2405.04434, section 2.1; V3, 2412.19437. Of every token only
the compressed latent and one rotated key for all heads are kept for decoding.
There each head's up-projections are absorbed: queries go down into the latent
space, attend to the latents themselves, and what they find comes back up.
Extra letters: R width of a latent, Hv width of a value.
"""

import dataclasses

from flax import linen as nn
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Count, NonNegative
from models import attention_kernels
from models import cache as caches
from models.layers.dense import weight
from models.layers.mask import Mask
from models.layers.norm import RMSNorm
from models.layers.position import Rotary, rotate
from models.layers.reference import attend
from models.weights import Weight, einsum
from sharding.rules import constrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Widths of a head's parts, and of what they are compressed to."""

  q_rank: Count | None = None  # None: queries are not compressed; V2-Lite
  kv_rank: Count = 512  # of keys and values together
  d_plain: Count = 128  # of a query and a key, without positions
  d_rotary: Count = 64  # of a query and of the key that all heads share
  d_value: Count = 128
  # Logits grow by (0.1 mscale ln(factor) + 1)^2 where YaRN stretches by
  # `factor`; 0.707 in V2, 1 in V3.
  mscale: NonNegative = 0.0

  def __post_init__(self):
    fields.check(self)
    if self.d_rotary % 2:
      raise ValueError(
        f"d_rotary={self.d_rotary} is odd: rotary positions turn pairs."
      )


class LatentAttention(nn.Module):
  """Attention of n_heads; `scale` is of the logits."""

  config: Config
  n_heads: int
  scale: float
  dtype: jnp.dtype
  norm_epsilon: float

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    mask: Mask,
    rotary: Rotary,
    cache: caches.LayerCache | None = None,
    lengths: Int[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B T D"], caches.LayerCache | None]:
    c = self.config
    q_BTNH = checkpoint_name(self._queries(x), "qkv")
    q_plain, q_rotary = jnp.split(q_BTNH, [c.d_plain], axis=-1)
    q_rotary = rotate(q_rotary, rotary, interleaved=True)

    latent_BTR = self._compressed(x, "kv", c.kv_rank)
    w = self._weight("k_rotary", (x.shape[-1], c.d_rotary), "embed", "latent")
    k_BTH = einsum("BTD,DH->BTH", x, w, self.dtype)
    k_BT1H = rotate(k_BTH[:, :, None], rotary, interleaved=True)
    latent_BTR = checkpoint_name(latent_BTR, "qkv")
    k_BT1H = checkpoint_name(k_BT1H, "qkv")

    up = ("latent_in", "heads", "head")
    k_up = self._weight("k_up", (c.kv_rank, self.n_heads, c.d_plain), *up)
    v_up = self._weight("v_up", (c.kv_rank, self.n_heads, c.d_value), *up)
    if cache is None:
      k_BTNH = self._to_heads(latent_BTR, k_up)
      v_BTNH = self._to_heads(latent_BTR, v_up)
      shared = jnp.broadcast_to(k_BT1H, (*k_BTNH.shape[:3], c.d_rotary))
      out_BTNH = attention_kernels.run(
        jnp.concatenate([q_plain, q_rotary], axis=-1),
        jnp.concatenate([k_BTNH, shared], axis=-1),
        v_BTNH,
        mask,
        scale=self.scale,
      )
    else:
      cache, seen, mask = caches.extend(
        cache, lengths, k_BT1H, latent_BTR[:, :, None], mask
      )
      k_BS1H, latent_BS1R = seen.keys.swapaxes(1, 2), seen.values.swapaxes(1, 2)
      q_BTNR = einsum("BTNH,RNH->BTNR", q_plain, k_up, self.dtype)
      found_BTNR = attend(
        jnp.concatenate([q_BTNR, q_rotary], axis=-1),
        jnp.concatenate([latent_BS1R, k_BS1H], axis=-1),
        latent_BS1R,
        mask,
        scale=self.scale,
      )
      out_BTNH = einsum("BTNR,RNH->BTNH", found_BTNR, v_up, self.dtype)

    out_BTNH = checkpoint_name(out_BTNH, "attended")
    out_BTNH = constrain(out_BTNH, "batch", "length", "act_heads", None)
    shape = (self.n_heads, c.d_value, x.shape[-1])
    wo = self._weight("o", shape, "heads", "head", "embed")
    return einsum("BTNH,NHD->BTD", out_BTNH, wo, self.dtype), cache

  def _queries(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
    c = self.config
    heads = (self.n_heads, c.d_plain + c.d_rotary)
    if c.q_rank is None:
      names = ("embed", "heads", "head")
      return self._to_heads(x, self._weight("q", (x.shape[-1], *heads), *names))
    latent_BTR = self._compressed(x, "q", c.q_rank)
    names = ("latent_in", "heads", "head")
    w = self._weight("q_up", (c.q_rank, *heads), *names)
    return self._to_heads(latent_BTR, w)

  def _compressed(
    self, x: Float[Array, "B T D"], name: str, rank: int
  ) -> Float[Array, "B T R"]:
    w = self._weight(f"{name}_down", (x.shape[-1], rank), "embed", "latent")
    y_BTR = einsum("BTD,DR->BTR", x, w, self.dtype)
    return RMSNorm(self.norm_epsilon, ("latent",), name=f"{name}_norm")(y_BTR)

  def _to_heads(
    self, x: Float[Array, "B T R"], w: Weight
  ) -> Float[Array, "B T N H"]:
    y_BTNH = einsum("BTR,RNH->BTNH", x, w, self.dtype)
    return constrain(y_BTNH, "batch", "length", "act_heads", None)

  def _weight(self, name: str, shape: tuple[int, ...], *axes: str) -> Weight:
    return weight(self, name, shape, axes, dtype=self.dtype)
