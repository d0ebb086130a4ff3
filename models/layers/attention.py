"""Grouped-query attention (arXiv 2305.13245): projections around a kernel.

Of its own text, or of another one that was read before (1706.03762).
Extras of families: biases (Qwen2), normed queries and keys (Qwen3, 2302.05442;
over all heads, OLMo 2), sliding windows (2310.06825), soft caps (2408.00118),
ALiBi (2108.12409).
"""

import dataclasses

from flax import linen as nn
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from models import attention_kernels
from models import cache as caches
from models.layers.dense import add_bias, vector, weight
from models.layers.mask import Mask
from models.layers.norm import RMSNorm
from models.layers.position import (
  RelativeBias,
  Rotary,
  alibi_slopes,
  rotate,
)
from models.layers.reference import attend
from models.weights import einsum
from sharding.rules import constrain


class Attention(nn.Module):
  """Queries of G = N / K heads share one key and one value head."""

  n_heads: int
  n_kv_heads: int
  d_head: int
  dtype: jnp.dtype
  window: int | None = None
  qkv_biased: bool = False
  out_biased: bool = False
  qk_norm_epsilon: float | None = None  # None: queries and keys as they are
  qk_norm_wide: bool = False  # over all heads together
  qk_norm_offset: float = 0.0  # what is added to the scale of these norms
  scale: float | None = None  # of the logits; None: 1 / sqrt(d_head)
  softcap: float | None = None
  alibi: bool = False
  q_std: float = 0.02
  kv_std: float = 0.02
  out_std: float = 0.02

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    mask: Mask,
    rotary: Rotary | None,
    cache: caches.LayerCache | None = None,
    lengths: Int[Array, "B"] | None = None,
    *,
    memory: Float[Array, "B S D"] | caches.LayerCache | None = None,
    bias: RelativeBias | None = None,
  ) -> tuple[Float[Array, "B T D"], caches.LayerCache | None]:
    """Attends to x's own text, or to another one.

    Args:
      x: what asks.
      mask: who may see whom; its window is the layer's.
      rotary: phases of x.
      cache: what was read of x's own text before.
      lengths: how much that is.
      memory: the other text, or its keys and values of an earlier call.
      bias: of the logits.

    Returns:
      What was found, and what a later call goes on from: the cache with x in
      it, or the keys and values of the other text.
    """
    q_BTNH = self._project(x, "q", self.n_heads, "heads")
    if self.qk_norm_epsilon is not None:
      q_BTNH = self._normed(q_BTNH, "q_norm", "heads")
    if rotary is not None:
      q_BTNH = rotate(q_BTNH, rotary)
    q_BTNH = checkpoint_name(q_BTNH, "qkv")
    run = attention_kernels.run
    if isinstance(memory, caches.LayerCache):
      k_BSKH, v_BSKH = memory.keys.swapaxes(1, 2), memory.values.swapaxes(1, 2)
      run = attend
    else:
      seen = x if memory is None else memory
      k_BSKH, v_BSKH = self._keys_and_values(seen, rotary)

    mask, kept = dataclasses.replace(mask, window=self.window), None
    if memory is not None:
      kept = caches.LayerCache(k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2))
    elif cache is not None:
      kept, seen, mask = caches.extend(cache, lengths, k_BSKH, v_BSKH, mask)
      k_BSKH, v_BSKH = seen.keys.swapaxes(1, 2), seen.values.swapaxes(1, 2)
      run = attend
    out_BTNH = run(
      q_BTNH,
      k_BSKH,
      v_BSKH,
      mask,
      scale=self.scale,
      softcap=self.softcap,
      slopes_N=alibi_slopes(self.n_heads) if self.alibi else None,
      bias=bias,
    )
    return self._out(out_BTNH, x.shape[-1]), kept

  def _out(
    self, out_BTNH: Float[Array, "B T N H"], d_model: int
  ) -> Float[Array, "B T D"]:
    """What the heads found, as one."""
    out_BTNH = checkpoint_name(out_BTNH, "attended")
    out_BTNH = constrain(out_BTNH, "batch", "length", "act_heads", None)
    wo = weight(
      self,
      "o",
      (self.n_heads, self.d_head, d_model),
      ("heads", "head", "embed"),
      self.out_std,
      dtype=self.dtype,
    )
    out = einsum("BTNH,NHD->BTD", out_BTNH, wo, self.dtype)
    out = constrain(out, "batch", "stream", "act_embed")
    if self.out_biased:
      out = add_bias(out, vector(self, "o_bias", (d_model,), ("norm",)))
    return out

  def _keys_and_values(
    self, x: Float[Array, "B S D"], rotary: Rotary | None
  ) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    # One head for all is never split.
    of_kv = "kv_heads" if self.n_kv_heads > 1 else None
    k_BSKH = self._project(x, "k", self.n_kv_heads, of_kv)
    v_BSKH = self._project(x, "v", self.n_kv_heads, of_kv)
    if self.qk_norm_epsilon is not None:
      k_BSKH = self._normed(k_BSKH, "k_norm", of_kv)
    if rotary is not None:
      k_BSKH = rotate(k_BSKH, rotary)
    return checkpoint_name(k_BSKH, "qkv"), checkpoint_name(v_BSKH, "qkv")

  def _normed(
    self, x: Float[Array, "B T N H"], name: str, axis: str | None
  ) -> Float[Array, "B T N H"]:
    return RMSNorm(
      self.qk_norm_epsilon,
      (axis, "head") if self.qk_norm_wide else ("head",),
      self.qk_norm_offset,
      name=name,
    )(x)

  def _project(
    self, x: Float[Array, "B T D"], name: str, n_heads: int, axis: str | None
  ) -> Float[Array, "B T N H"]:
    shape = (x.shape[-1], n_heads, self.d_head)
    std = self.q_std if name == "q" else self.kv_std
    names = ("embed", axis, "head")
    w = weight(self, name, shape, names, std, dtype=self.dtype)
    y = einsum("BTD,DNH->BTNH", x, w, self.dtype)
    if self.qkv_biased:
      bias = vector(self, f"{name}_bias", shape[1:], (axis, "head"))
      y = add_bias(y, bias)
    return constrain(y, "batch", "length", axis and f"act_{axis}", None)
