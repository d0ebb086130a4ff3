"""Attention as it is written down: what every kernel is measured by.

Grouped queries: arXiv 2305.13245. Soft caps: 2408.00118. Sinks: 2309.17453.
ALiBi: 2108.12409. Relative buckets: 1910.10683.
Values may be of another width than keys: Hv.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from models.layers.mask import Mask
from models.layers.position import RelativeBias


def attend(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K Hv"],
  mask: Mask,
  *,
  scale: float | None = None,
  softcap: float | None = None,
  bias: RelativeBias | None = None,
  bias_NTS: Float[Array, "N T S"] | None = None,
  slopes_N: Float[Array, "N"] | None = None,
  sinks_N: Float[Array, "N"] | None = None,
) -> Float[Array, "B T N Hv"]:
  """The reference: O(T S) memory, softmax in fp32, masked rows give zeros.

  Args:
    q_BTNH: queries; N = G K, the G heads of a group lie side by side.
    k_BSKH: keys.
    v_BSKH: values.
    mask: who may see whom.
    scale: of the logits; 1 / sqrt(H) by default.
    softcap: logits become softcap * tanh(logits / softcap).
    bias: added to the logits, by the positions of the mask.
    bias_NTS: added to the logits.
    slopes_N: of ALiBi: a head's logits fall by so much a token of distance.
    sinks_N: a logit per head that takes probability and gives nothing.
  """
  extras = {
    "bias": bias,
    "bias_NTS": bias_NTS,
    "slopes_N": slopes_N,
    "sinks_N": sinks_N,
  }
  sums, total, _ = weigh(
    q_BTNH, k_BSKH, v_BSKH, mask, scale=scale, softcap=softcap, **extras
  )
  # Divided at the end, and backwards at first: H numbers a query, not S.
  return in_rows(sums / jnp.where(total > 0, total, 1.0), q_BTNH.dtype)


def weigh(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K Hv"],
  mask: Mask,
  *,
  scale: float | None = None,
  softcap: float | None = None,
  bias: RelativeBias | None = None,
  bias_NTS: Float[Array, "N T S"] | None = None,
  slopes_N: Float[Array, "N"] | None = None,
  sinks_N: Float[Array, "N"] | None = None,
  least: Float[Array, "B K G T 1"] | None = None,
) -> tuple[
  Float[Array, "B K G T Hv"],
  Float[Array, "B K G T 1"],
  Float[Array, "B K G T 1"],
]:
  """What these keys add to a softmax: sums of exp(logit - top) v, their weights.

  Args:
    q_BTNH: queries.
    k_BSKH: keys; these may be a part of all.
    v_BSKH: values.
    mask: who may see whom.
    scale: as in `attend`, and the following too.
    softcap: see there.
    bias: see there.
    bias_NTS: see there.
    sinks_N: see there.
    least: that top shall be, as other keys have a logit so high.

  Returns:
    Sums, sums of the weights, and top, which has no gradient; of a query that
    sees none of these keys the sums are 0.
  """
  n_rows, n_queries, n_heads, d_head = q_BTNH.shape
  scale = d_head**-0.5 if scale is None else scale
  n_kv_heads = k_BSKH.shape[2]
  n_groups = n_heads // n_kv_heads
  by_group = (n_rows, n_kv_heads, n_groups, n_queries, -1)
  # All that looks at one kv head in one dimension, M = G T: given five, XLA:CPU
  # copies the values of every decoding step to turn them around.
  by_kv_head = (n_rows, n_kv_heads, n_groups * n_queries, -1)
  q_BTKGH = q_BTNH.reshape(n_rows, n_queries, n_kv_heads, n_groups, d_head)
  q_BKMH = q_BTKGH.transpose(0, 2, 3, 1, 4).reshape(by_kv_head)
  # fp32 operands: TPUs still multiply in bf16 by default but add in fp32, and
  # XLA:CPU upcasts batched bf16 dots anyway.
  logits = jnp.einsum(
    "BKMH,BKSH->BKMS",
    q_BKMH.astype(jnp.float32) * scale,
    k_BSKH.swapaxes(1, 2).astype(jnp.float32),
  ).reshape(by_group)
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  if bias is not None:
    logits += bias.dense(mask).reshape(logits.shape)
  if bias_NTS is not None:
    logits += bias_NTS.reshape(1, n_kv_heads, -1, *bias_NTS.shape[1:])
  if slopes_N is not None:
    slopes = slopes_N.reshape(1, n_kv_heads, -1, 1, 1)
    logits -= slopes * mask.distances()[:, None, None].astype(jnp.float32)
  if (bias_BTS := mask.bias()) is not None:
    logits += bias_BTS[:, None, None]
  if sinks_N is not None:
    sinks_N = sinks_N.reshape(1, n_kv_heads, -1, 1, 1)
  seen = mask.dense()[:, None, None]
  weights, total, top = _unnormalized_softmax(logits, seen, sinks_N, least)
  weights_BKMS = weights.astype(v_BSKH.dtype).reshape(by_kv_head)
  v_BKSH = v_BSKH.swapaxes(1, 2)
  sums_BKMH = jnp.einsum("BKMS,BKSH->BKMH", weights_BKMS, v_BKSH)
  return sums_BKMH.reshape(by_group), total, top


def in_rows(
  out_BKGTH: Float[Array, "B K G T H"], dtype: jnp.dtype
) -> Float[Array, "B T N H"]:
  """The heads of all groups side by side again."""
  out_BTKGH = out_BKGTH.transpose(0, 3, 1, 2, 4)
  return out_BTKGH.reshape(
    *out_BTKGH.shape[:2], -1, out_BKGTH.shape[-1]
  ).astype(dtype)


def _unnormalized_softmax(
  logits: Array, seen: Array, sinks: Array | None, least: Array | None
) -> tuple[Array, Array, Array]:
  """exp(logits - top) where seen, the sums over the last dimension, and top."""
  lowest = jnp.finfo(jnp.float32).min
  top = jnp.where(seen, logits, lowest).max(-1, keepdims=True)
  if sinks is not None:
    sinks = sinks.astype(jnp.float32)
    top = jnp.maximum(top, sinks)
  if least is not None:
    top = jnp.maximum(top, least)
  top = jax.lax.stop_gradient(top)
  # The inner where keeps exp finite behind the mask, for the gradient too.
  weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits - top, 0.0)), 0.0)
  total = weights.sum(-1, keepdims=True)
  if sinks is not None:
    total += jnp.exp(sinks - top)
  return weights, total, top
