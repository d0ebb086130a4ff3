"""Which attention kernel on which device: one signature, no silent fall-back.

  reference  any device; the logits of all queries at once: O(T S) memory
  chunked    any device; the queries in chunks, computed again for the backward
             pass: O(S) memory
  splash     TPU; Pallas, blockwise (FlashAttention, arXiv 2205.14135), and
             blocks that nobody sees are skipped
  cudnn      GPU; bf16 or fp16. Blockwise too, but segments reach it as a dense
             mask: two bytes for a query and key of a row, for all heads

The layout names one. "auto" is splash on TPUs and cudnn on GPUs where they can
run, and else the reference, of rows longer than 1,024 chunked; `choose` says
which. One that is asked for by name and cannot run is an error. Where rows are
split over `context`, the kernel runs within what models/context_attention.py
says, and "auto" never takes the reference.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
from jaxtyping import Array, Float

from models import context_attention
from models.layers.mask import Mask
from models.layers.position import RelativeBias
from models.layers.reference import attend
from sharding import context, rules

CHUNK = 256  # queries whose logits are held at once
_LANES = 128  # splash works on blocks of so many tokens
_SHORT = 4 * CHUNK  # rows whose logits "auto" holds at once

# What each kernel may do to the logits; the others may do anything.
_EXTRAS = {"splash": ("softcap",), "cudnn": ()}


def extras_of(config: Any) -> tuple[str, ...]:
  """What a model's config has done to the logits of its attention."""
  fields = ("softcap", "alibi", "marked", "n_buckets")
  found = (name for name in fields if getattr(config, name, None))
  return tuple(name.removeprefix("n_") for name in found)


def choose(
  *, length: int, d_head: int, dtype: Any, extras: Sequence[str] = ()
) -> str:
  """The kernel that runs, in the current layout.

  Args:
    length: of the rows that are trained on.
    d_head: size of a head.
    dtype: of the computation.
    extras: what attention has: softcap, alibi, buckets; a prefix that is seen
      whole, another text; or marked, where tokens are marked as what sees all
      or as of a text in blocks.

  Raises:
    ValueError: what was asked for cannot run here.
  """
  layout = rules.current()
  kernel = "auto" if layout is None else layout.attention
  if kernel == "auto":
    for name in ("splash", "cudnn"):
      # The shape first: no device is started to lay out a model's parameters.
      misfit = _misfit(name, length, d_head, dtype, extras)
      if not misfit and not _elsewhere(name):
        return name
    is_whole = context.size(layout) == 1
    return "reference" if is_whole and length <= _SHORT else "chunked"
  problem = _elsewhere(kernel)
  problem = problem or _misfit(kernel, length, d_head, dtype, extras)
  if problem:
    raise ValueError(
      f"mesh.attention={kernel!r} cannot run: {problem}. Give 'chunked', "
      "'reference' or 'auto'."
    )
  return kernel


def _elsewhere(kernel: str) -> str | None:
  """What is wrong with the devices, if anything."""
  made_for, platform = {"splash": "tpu", "cudnn": "gpu"}, rules.platform()
  if made_for.get(kernel, platform) != platform:
    return (
      f"it is made for {made_for[kernel].upper()}s, and this is a {platform}"
    )
  return None


def _misfit(
  kernel: str, length: int, d_head: int, dtype: Any, extras: Sequence[str]
) -> str | None:
  """What is wrong with the numbers, if anything."""
  if kernel not in _EXTRAS:
    return None
  if unknown := [x for x in extras if x not in _EXTRAS[kernel]]:
    return f"it has no {unknown[0]}, and the model's attention does"
  layout = rules.current()
  n_parts = context.size(layout)
  if n_parts > 1 and layout.exchange == "ring":
    return "mesh.context_exchange='ring' has a kernel of its own"
  if n_parts > 1 and layout.order == "zigzag":
    return "it reads the columns of a row in order, not in zigzag"
  if kernel == "cudnn":
    if jnp.dtype(dtype).itemsize != 2:
      return f"it computes in bfloat16 or float16, not in dtype={dtype}"
    if d_head % 8 or d_head > 256:
      return f"d_head={d_head} is no multiple of 8 up to 256"
    return None
  if length % (n_parts * _LANES):
    share = f", split over {n_parts}," if n_parts > 1 else ""
    return f"length={length}{share} is no multiple of {_LANES}"
  return None


def run(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K Hv"],
  mask: Mask,
  *,
  scale: float | None = None,
  softcap: float | None = None,
  slopes_N: Float[Array, "N"] | None = None,
  bias: RelativeBias | None = None,
) -> Float[Array, "B T N Hv"]:
  """Attention by the kernel that `choose` gives.

  Args:
    q_BTNH: queries; N = G K, the G heads of a group lie side by side.
    k_BSKH: keys.
    v_BSKH: values.
    mask: who may see whom.
    scale: of the logits; 1 / sqrt(H) by default.
    softcap: of the logits.
    slopes_N: of ALiBi, constants.
    bias: added to the logits, by the positions of the mask.
  """
  length, d_head = q_BTNH.shape[1], q_BTNH.shape[3]
  asked = {
    "softcap": softcap is not None,
    "alibi": slopes_N is not None,
    "marked": mask.kv_marks is not None,
    "buckets": bias is not None,
    "prefix": mask.prefix is not None,
    "another text": k_BSKH.shape[1] != length,
  }
  chosen = choose(
    length=length,
    d_head=d_head,
    dtype=q_BTNH.dtype,
    extras=[name for name, is_asked in asked.items() if is_asked],
  )
  layout = rules.current()
  operands = q_BTNH, k_BSKH, v_BSKH, mask
  if chosen == "splash":
    return splash(*operands, scale=scale, softcap=softcap)
  if chosen == "cudnn":
    return cudnn(*operands, scale=scale)
  one = {"chunked": chunked, "reference": attend}[chosen]

  def kernel(q, k, v, mask, slopes, **more):
    extras = {"scale": scale, "softcap": softcap, "slopes_N": slopes, **more}
    return one(q, k, v, mask, **extras)

  if context.size(layout) == 1:
    return kernel(*operands, slopes_N, bias=bias)
  if bias is not None:
    raise ValueError(
      f"mesh.context={context.size(layout)} splits rows, and a bias by buckets "
      "is not carried along: give mesh.context=1."
    )
  context.check(layout, length=length, n_kv_heads=k_BSKH.shape[2])
  if layout.exchange == "ring":
    block = context_attention.BLOCK if chosen == "chunked" else None
    kernel = functools.partial(context_attention.ring, block, scale, softcap)
  else:
    kernel = context_attention.AROUND[layout.exchange](kernel)
  return context.on_shards(kernel, *operands, slopes_N)


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
    extras: scale, softcap, bias, bias_NTS, slopes_N and sinks_N of the reference.
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
    q, queries, bias_NTS = part
    if bias_NTS is not None:
      extras["bias_NTS"] = bias_NTS
    seen = mask.replace(**queries)
    return attend(q, k_BSKH, v_BSKH, seen, **extras)

  parts = (
    split(q_BTNH, 1),
    jax.tree.map(lambda x: split(x, 1), mask.queries),
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
  softcap: float | None = None,
  interpret: bool = False,
) -> Float[Array, "B T N Hv"]:
  """The Pallas kernel, on each shard's rows and heads.

  Rows that nobody may see, as padding, give numbers without meaning.

  Args:
    q_BTNH: queries.
    k_BSKH: keys; as many as queries.
    v_BSKH: values.
    mask: causal or not, maybe with a window, no marks; segments are contiguous.
    scale: of the logits; 1 / sqrt(H) by default.
    softcap: of the logits.
    interpret: runs anywhere, slowly: for tests.
  """

  local = functools.partial(_splash_on_shard, interpret, scale, softcap)
  return _on_shards(local, q_BTNH, k_BSKH, v_BSKH, mask)


def _on_shards(local, q_BTNH, k_BSKH, v_BSKH, mask):
  layout = rules.current()
  if context.size(layout) > 1:
    local = context_attention.AROUND[layout.exchange](local)
  return context.on_shards(local, q_BTNH, k_BSKH, v_BSKH, mask)


def _splash_on_shard(interpret, scale, softcap, q, k, v, mask, slopes):
  assert slopes is None
  n_groups, n_shards = q.shape[2] // k.shape[2], k.shape[1] // q.shape[1]
  one = _splash_mask(k.shape[1], mask)
  kernel = _kernel(one, n_shards, n_groups, softcap, interpret)
  q_BKGTH = (
    (q * (q.shape[3] ** -0.5 if scale is None else scale))
    .reshape(*q.shape[:2], k.shape[2], n_groups, q.shape[3])
    .transpose(0, 2, 3, 1, 4)
  )
  k_BKSH, v_BKSH = k.swapaxes(1, 2), v.swapaxes(1, 2)
  # Over rows, then over kv heads: a kernel serves the queries of one.
  by_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
  out_BKGTH = jax.vmap(by_head)(
    q_BKGTH,
    k_BKSH,
    v_BKSH,
    splash_kernel.SegmentIds(mask.q_segments, mask.kv_segments),
  )
  return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(*q.shape[:3], -1)


def _splash_mask(length: int, mask: Mask) -> splash_mask.Mask:
  """What positions say; segments come beside it."""
  shape = (length, length)
  if mask.window is not None:
    ahead = 0 if mask.causal else mask.window - 1
    return splash_mask.LocalMask(shape, (mask.window - 1, ahead), 0)
  kind = splash_mask.CausalMask if mask.causal else splash_mask.FullMask
  return kind(shape)


def _kernel(
  one: splash_mask.Mask,
  n_shards: int,
  n_groups: int,
  softcap: float | None,
  interpret: bool,
):
  """The kernel of one kv head; its queries may be one of many shards' own."""
  length = one.shape[0]
  block = _divisor(length // n_shards, 512)
  # Queries' and keys' gradients from a kernel each. The fused one leaves a part
  # of the queries' for every block of keys, to be added up (3 % of the cycles of
  # Llama 2 7B at 4,096 tokens, with two), or skips nothing with a single block.
  sizes = splash_kernel.BlockSizes(
    **{
      name: block
      for name in (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv",
        "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq",
      )
    },
  )  # fmt: skip
  kernel = splash_kernel.make_splash_mqa(
    splash_mask.MultiHeadMask([one] * n_groups),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=n_shards,
    attn_logits_soft_cap=softcap,
    interpret=interpret,
  )
  return kernel if n_shards == 1 else _of_shard(kernel)


def _divisor(length: int, most: int) -> int:
  """The largest block of whole lanes, up to a size, that divides a length."""
  block = min(most, length)
  while length % block:
    block -= _LANES
  return block


def _of_shard(kernel: splash_kernel.SplashAttentionKernel):
  """What the kernel knows of the queries of this shard."""

  def own(x, dim):
    return context.own(x, dim) if x is not None else None

  def part(info):
    return info and info._replace(
      data_next=own(info.data_next, 1),
      mask_next=own(info.mask_next, 1),
      block_mask=own(info.block_mask, 1),
      q_sequence=own(info.q_sequence, 0),
    )

  infos, kwargs = kernel.tree_flatten()
  return splash_kernel.SplashAttentionKernel(*map(part, infos), **kwargs)


def cudnn(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K Hv"],
  mask: Mask,
  *,
  scale: float | None = None,
  implementation: str = "cudnn",
) -> Float[Array, "B T N Hv"]:
  """cuDNN's fused attention, on each shard's rows and heads.

  Rows that nobody may see, as padding, give numbers without meaning.

  Args:
    q_BTNH: queries.
    k_BSKH: keys.
    v_BSKH: values, of the keys' width or narrower.
    mask: who may see whom.
    scale: of the logits; 1 / sqrt(H) by default.
    implementation: "xla" runs anywhere, slowly: for tests.
  """
  local = functools.partial(_cudnn_on_shard, implementation, scale)
  return _on_shards(local, q_BTNH, k_BSKH, v_BSKH, mask)


def _cudnn_on_shard(implementation, scale, q, k, v, mask, slopes):
  assert slopes is None
  # Told that it is causal, it skips the blocks above the diagonal; its diagonal
  # starts at the first key, which is not that of a shard's first query.
  in_order = mask.causal and mask.prefix is None and q.shape[1] == k.shape[1]
  d_value = v.shape[3]
  v = jnp.pad(v, [(0, 0)] * 3 + [(0, q.shape[3] - d_value)])
  run = functools.partial(
    jax.nn.dot_product_attention,
    scale=scale,
    is_causal=in_order,
    implementation=implementation,
  )

  def alone(q, k, v):
    window = None if mask.window is None else (mask.window - 1, 0)
    return run(q, k, v, local_window_size=window)  # causal, as in_order says

  def packed(q, k, v):
    seen_BTS = mask.replace(causal=mask.causal and not in_order).dense()
    return run(q, k, v, mask=seen_BTS[:, None])

  if in_order:
    # Rows of one text each, padded at their ends at most, take half the time.
    before, after = mask.q_segments[:, :-1], mask.q_segments[:, 1:]
    cut = jnp.not_equal(before, after) & jnp.not_equal(after, 0)
    out = jax.lax.cond(cut.any(), packed, alone, q, k, v)
  else:
    out = packed(q, k, v)
  return out[..., :d_value]
