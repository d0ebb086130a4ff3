"""Attention over positions of many shards: ring, gather, Ulysses.

Each takes what lies on one shard, within `context.on_shards`. The ring has its
own kernel, blockwise and with its own gradient (Ring Attention, arXiv
2310.01889; FlashAttention-2, 2307.08691): a shard never holds the keys of all,
nor more than one block of logits, and blocks that nobody sees are skipped. The
other two run the kernel of one device.
Extra letters: U queries of a block, X keys of a block.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from models.layers.mask import Mask
from models.layers.reference import in_rows, weigh
from sharding import context

BLOCK = 512  # queries, and keys, whose logits are held at once
# Queries, keys, values, their mask, and ALiBi's slopes of the heads, if any.
Kernel = Callable[[Array, Array, Array, Mask, Array | None], Array]


def gather(kernel: Kernel) -> Kernel:
  """Own queries meet the gathered keys of all shards."""

  def run(q, k, v, mask, slopes):
    mask = mask.replace(**jax.tree.map(context.gather, mask.keys))
    return kernel(q, context.gather(k), context.gather(v), mask, slopes)

  return run


def ulysses(kernel: Kernel) -> Kernel:
  """All queries of own heads meet all keys of these heads."""

  def run(q, k, v, mask, slopes):
    whole = jax.tree.map(context.gather, {**mask.queries, **mask.keys})
    q, k, v = (context.to_heads(x) for x in (q, k, v))
    slopes = None if slopes is None else context.own(slopes, 0)
    out = kernel(q, k, v, mask.replace(**whole), slopes)
    return context.to_positions(out)

  return run


AROUND = {"gather": gather, "ulysses": ulysses}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def ring(
  block: int | None,
  scale: float | None,
  softcap: float | None,
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K Hv"],
  mask: Mask,
  slopes: Float[Array, "N"] | None = None,
) -> Float[Array, "B T N Hv"]:
  """Own queries meet the keys of one shard after the other.

  Args:
    block: queries, and keys, whose logits are held at once; None: all that
      lie on a shard.
    scale: of the logits; 1 / sqrt(H) where None.
    softcap: of the logits.
    q: own queries.
    k: own keys.
    v: own values.
    mask: of these.
    slopes: of ALiBi, constants.
  """
  return _forward(block, scale, softcap, q, k, v, mask, slopes)[0]


def _forward(block, scale, softcap, q, k, v, mask, slopes):
  """Softmax in one pass: the sums fade as a higher logit comes."""
  extras = {"scale": scale, "softcap": softcap, "slopes_N": slopes}
  queries = _cut(block, (q, mask.queries))
  keys = _cut(block, (k, v, mask.keys))

  def visit(state, _, query, key):
    (q, *_), (k, v, _) = query, key
    seen = _between(mask, query, key)

    def add(state):
      sums, total, top = state
      more, weight, higher = weigh(q, k, v, seen, **extras, least=top)
      fade = jnp.exp(top - higher)
      return sums * fade + more, total * fade + weight, higher

    return jax.lax.cond(seen.dense().any(), add, lambda x: x, state), ()

  def step(state, keys):
    return _blocks(visit, state, (), queries, keys)[0], keys

  (sums, total, top), _ = context.ring(step, _start(queries, k, v), keys)
  total = jnp.where(total > 0, total, 1.0)
  out = jax.vmap(in_rows, (0, None))(sums / total, q.dtype)
  out = checkpoint_name(_join(out, q.shape[1]), "attended")
  # log of the sum of exp(logits): the lowest number where nothing is seen.
  log_total = checkpoint_name(top + jnp.log(total), "attended")
  return out, (q, k, v, mask, slopes, out, log_total)


def _backward(block, scale, softcap, saved, grad_out):
  """The blocks again, with weights that add up to 1; gradients travel along."""
  q, k, v, mask, slopes, out, log_total = saved
  extras = {"scale": scale, "softcap": softcap, "slopes_N": slopes}
  by_group = lambda x: x.reshape(*x.shape[:2], k.shape[2], -1, x.shape[3])  # noqa: E731
  f32 = jnp.float32
  through_total = -(grad_out.astype(f32) * out.astype(f32)).sum(-1)[..., None]
  given = _cut(block, (by_group(grad_out), by_group(through_total)))
  given = tuple(x.transpose(0, 1, 3, 4, 2, 5) for x in given)  # C B K G T H
  own = _cut(block, (q, mask.queries))
  queries = *own, *given, log_total
  keys = _cut(block, (k, v, mask.keys))

  def visit(grad_q, grads_kv, query, key):
    q, _, grad_sums, grad_total, top = query
    k, v, _ = key
    seen = _between(mask, query, key)

    def add(grads):
      def sums(q, k, v):
        return weigh(q, k, v, seen, **extras, least=top)[:2]

      (of_v, _), pull = jax.vjp(sums, q, k, v)
      more = pull((grad_sums.astype(of_v.dtype), grad_total))
      return jax.tree.map(lambda x, y: x + y.astype(x.dtype), grads, more)

    grads = (grad_q, *grads_kv)
    grad_q, *grads_kv = jax.lax.cond(
      seen.dense().any(), add, lambda x: x, grads
    )
    return grad_q, tuple(grads_kv)

  def step(grad_q, travel):
    keys, grads_kv = travel
    grad_q, grads_kv = _blocks(visit, grad_q, grads_kv, queries, keys)
    return grad_q, (keys, grads_kv)

  zeros = lambda x: jnp.zeros(x.shape, f32)  # noqa: E731
  travel = keys, (zeros(keys[0]), zeros(keys[1]))
  grad_q, (_, grads_kv) = context.ring(step, zeros(own[0]), travel)
  grads = zip((grad_q, *grads_kv), (q, k, v), strict=True)
  return *(_join(g, x.shape[1]).astype(x.dtype) for g, x in grads), None, None


ring.defvjp(_forward, _backward)


def _start(queries: Any, k: Array, v: Array) -> tuple[Array, Array, Array]:
  """Sums, total and top of queries that have not met any key."""
  n_blocks, n_rows, block, n_heads, _ = queries[0].shape
  n_kv_heads = k.shape[2]
  shape = n_blocks, n_rows, n_kv_heads, n_heads // n_kv_heads, block
  one = jnp.zeros((*shape, 1), jnp.float32)
  sums = jnp.zeros((*shape, v.shape[-1]), jnp.float32)
  return sums, one, one + jnp.finfo(jnp.float32).min


def _between(mask: Mask, query: Any, key: Any) -> Mask:
  """Who may see whom of a block of queries and one of keys."""
  return mask.replace(**query[1], **key[2])


def _blocks(
  visit: Callable, of_queries: Any, of_keys: Any, queries: Any, keys: Any
) -> tuple[Any, Any]:
  """Every block of queries visits every block of keys.

  Args:
    visit: (state of the queries, state of the keys, queries, keys) of two
      blocks to the two states.
    of_queries: states, a leading dimension for blocks; and so the rest.
    of_keys: states.
    queries: what is only read.
    keys: what is only read.
  """

  def row(of_keys, query):
    state, queries = query

    def one(state, key):
      return visit(state, key[0], queries, key[1])

    state, of_keys = jax.lax.scan(one, state, (of_keys, keys))
    return of_keys, state

  of_keys, of_queries = jax.lax.scan(row, of_keys, (of_queries, queries))
  return of_queries, of_keys


def _cut(block: int | None, arrays: Any) -> Any:
  """[B, T, ...] -> [blocks, B, U, ...]; segment 0 fills up the last block."""

  def cut(x):
    length = x.shape[1]
    size = min(block or length, length)
    pad = [(0, 0)] * x.ndim
    pad[1] = (0, -length % size)
    x = jnp.pad(x, pad).reshape(x.shape[0], -1, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  return jax.tree.map(cut, arrays)


def _join(x: Array, length: int) -> Array:
  """The way back."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
