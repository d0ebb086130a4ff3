"""Which attention kernel on which device: one signature, no silent fall-back.

  reference  any device; the logits of all queries at once: O(T S) memory
  chunked    any device; the queries in chunks, computed again for the backward
             pass: O(S) memory
  splash     TPU; Pallas, blockwise (FlashAttention, arXiv 2205.14135), and
             blocks that nobody sees are skipped

The layout names one. "auto" is splash on TPUs where it can run, and else the
reference; `choose` says which. One that is asked for by name and cannot run is
an error.
"""

import dataclasses

import jax
from jax import numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from models.layers.mask import Mask
from models.layers.reference import attend
from sharding import rules

CHUNK = 256  # queries whose logits are held at once
_LANES = 128  # splash works on blocks of so many tokens


def choose(*, length: int, d_head: int) -> str:
  """The kernel that runs, in the current layout.

  Args:
    length: of the rows that are trained on.
    d_head: size of a head.

  Raises:
    ValueError: what was asked for cannot run here.
  """
  layout = rules.current()
  kernel = "auto" if layout is None else layout.attention
  if kernel == "auto":
    # The shape first: no device is started to lay out a model's parameters.
    fits = _misfit(length, d_head) is None and rules.platform() == "tpu"
    return "splash" if fits else "reference"
  if kernel == "splash" and (problem := _problem_of_splash(length, d_head)):
    raise ValueError(
      f"mesh.attention='splash' cannot run: {problem}. Give 'chunked', "
      "'reference' or 'auto'."
    )
  return kernel


def _problem_of_splash(length: int, d_head: int) -> str | None:
  platform = rules.platform()
  if platform != "tpu":
    return f"it is made for TPUs, and this is a {platform}"
  return _misfit(length, d_head)


def _misfit(length: int, d_head: int) -> str | None:
  if length % _LANES:
    return f"length={length} is no multiple of {_LANES}"
  if d_head % 64:
    return f"d_head={d_head} is no multiple of 64"
  return None


def run(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K Hv"],
  mask: Mask,
  *,
  scale: float | None = None,
) -> Float[Array, "B T N Hv"]:
  """Attention by the kernel that `choose` gives.

  Args:
    q_BTNH: queries; N = G K, the G heads of a group lie side by side.
    k_BSKH: keys.
    v_BSKH: values.
    mask: who may see whom.
    scale: of the logits; 1 / sqrt(H) by default.
  """
  length, d_head = q_BTNH.shape[1], q_BTNH.shape[3]
  chosen = choose(length=length, d_head=d_head)
  kernel = {"splash": splash, "chunked": chunked, "reference": attend}[chosen]
  return kernel(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale)


def chunked(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K Hv"],
  mask: Mask,
  *,
  chunk: int = CHUNK,
  **extras,
) -> Float[Array, "B T N Hv"]:
  """The reference on one chunk of queries after the other.

  Args:
    q_BTNH: queries.
    k_BSKH: keys.
    v_BSKH: values.
    mask: who may see whom.
    chunk: queries at once; the last chunk is filled up with padding.
    extras: scale, softcap, bias_NTS and sinks_N of the reference.
  """
  n_rows, length, *_ = q_BTNH.shape
  n_chunks = -(-length // chunk)

  def split(x: Array, dim: int) -> Array:
    pad = [(0, 0)] * x.ndim
    pad[dim] = (0, n_chunks * chunk - length)
    x = jnp.pad(x, pad)
    x = x.reshape(*x.shape[:dim], n_chunks, chunk, *x.shape[dim + 1 :])
    return jnp.moveaxis(x, dim, 0)

  bias_NTS = extras.pop("bias_NTS", None)

  @jax.checkpoint
  def one(part):
    q, positions, segments, bias = part
    seen = dataclasses.replace(mask, q_positions=positions, q_segments=segments)
    if bias is not None:
      extras["bias_NTS"] = bias
    return attend(q, k_BSKH, v_BSKH, seen, **extras)

  parts = (
    split(q_BTNH, 1),
    split(mask.q_positions, 1),
    split(mask.q_segments, 1),
    None if bias_NTS is None else split(bias_NTS, 1),
  )
  out = jnp.moveaxis(jax.lax.map(one, parts), 0, 1)
  return out.reshape(n_rows, -1, *out.shape[3:])[:, :length]


def splash(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K Hv"],
  mask: Mask,
  *,
  scale: float | None = None,
  interpret: bool = False,
) -> Float[Array, "B T N Hv"]:
  """The Pallas kernel, on each shard's rows and heads.

  Rows that nobody may see, as padding, give numbers without meaning.

  Args:
    q_BTNH: queries.
    k_BSKH: keys; as many as queries.
    v_BSKH: values.
    mask: causal, maybe with a window; segments are contiguous.
    scale: of the logits; 1 / sqrt(H) by default.
    interpret: runs anywhere, slowly: for tests.
  """

  def on_shard(q, k, v, segments):
    n_groups = q.shape[2] // k.shape[2]
    kernel = _kernel(q.shape[1], n_groups, mask.window, interpret)
    q_BKGTH = (
      (q * (q.shape[3] ** -0.5 if scale is None else scale))
      .reshape(*q.shape[:2], k.shape[2], n_groups, q.shape[3])
      .transpose(0, 2, 3, 1, 4)
    )
    k_BKSH, v_BKSH = k.swapaxes(1, 2), v.swapaxes(1, 2)
    # Over rows, then over kv heads: a kernel serves the queries of one.
    by_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out_BKGTH = jax.vmap(by_head)(
      q_BKGTH, k_BKSH, v_BKSH, splash_kernel.SegmentIds(segments, segments)
    )
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(*q.shape[:3], -1)

  layout = rules.current()
  if layout is None:
    return on_shard(q_BTNH, k_BSKH, v_BSKH, mask.q_segments)
  table = layout.rules.activations
  rows, heads = table["batch"], table["act_heads"]
  wide, narrow = P(rows, None, heads), P(rows, None, table["act_kv_heads"])
  return jax.shard_map(
    on_shard,
    mesh=layout.mesh,
    in_specs=(wide, narrow, narrow, P(rows)),
    out_specs=wide,
    check_vma=False,  # the kernel does not say what its outputs vary over
  )(q_BTNH, k_BSKH, v_BSKH, mask.q_segments)


def _kernel(length: int, n_groups: int, window: int | None, interpret: bool):
  """The kernel of one kv head."""
  shape = (length, length)
  one = splash_mask.CausalMask(shape)
  if window is not None:
    one = splash_mask.LocalMask(shape, (window - 1, 0), 0)
  block = min(512, length)
  while length % block:
    block -= _LANES
  sizes = splash_kernel.BlockSizes(
    **{
      name: block
      for name in (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv",
        "block_kv_dkv", "block_kv_dkv_compute",
      )
    },
    use_fused_bwd_kernel=True,
  )  # fmt: skip
  return splash_kernel.make_splash_mqa_single_device(
    splash_mask.MultiHeadMask([one] * n_groups),
    block_sizes=sizes,
    interpret=interpret,
  )
