"""Attention whose positions are split over the mesh axis `context`.

Everything else of a model looks at one position at a time; a query has to meet
the keys of all shards, by one of three exchanges:
  ring     keys go from neighbour to neighbour (Ring Attention, arXiv 2310.01889)
  gather   each shard gathers the keys of all (Llama 3, 2407.21783)
  ulysses  positions are split no more, and heads are (DeepSpeed, 2309.14509)

In the order "zigzag" a row lies in 2n pieces, and shard i of n holds pieces i
and 2n - 1 - i: causal queries then have as much to see on every shard. Where a
token stands is in its position and segment, which travel along.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from sharding import rules
from sharding.rules import Layout

AXIS = "context"


def size(layout: Layout | None) -> int:
  """Into how many parts a row is split."""
  return 1 if layout is None else layout.mesh.shape[AXIS]


def check(layout: Layout, *, length: int, n_kv_heads: int) -> None:
  """Checks that rows and heads divide over the layout.

  Args:
    layout: any.
    length: of the rows.
    n_kv_heads: of all shards.

  Raises:
    ValueError: what does not divide, and the way out.
  """
  mesh, stream = layout.mesh, layout.rules.activations["stream"]
  n_parts = int(np.prod([mesh.shape[axis] for axis in stream]))
  if length % n_parts:
    raise ValueError(
      f"batch.length={length} is not divisible by "
      f"{rules.product(stream, mesh)}, over which the activations between "
      f"layers are split: make it a multiple of {n_parts}."
    )
  n = size(layout)
  if layout.order == "zigzag" and length % (2 * n):
    raise ValueError(
      f"batch.length={length} is not divisible by {2 * n}, the pieces of "
      f"mesh.context_order='zigzag' at context={n}: make it a multiple."
    )
  n_splits = n * int(
    np.prod([mesh.shape[a] for a in layout.rules.activations["act_kv_heads"]])
  )
  if layout.exchange == "ulysses" and n_kv_heads % n_splits:
    raise ValueError(
      f"{n_kv_heads} kv heads do not divide over {n_splits} shards: "
      "mesh.context_exchange='ulysses' splits heads over context and tensor. "
      "Give 'ring' or 'gather', or a smaller context."
    )


def columns(layout: Layout, length: int) -> np.ndarray:
  """The columns of a row in the order in which they lie on the shards."""
  n = size(layout)
  if layout.order != "zigzag":
    return np.arange(length)
  pieces = np.arange(length).reshape(2 * n, -1)
  order = [(i, 2 * n - 1 - i) for i in range(n)]
  return pieces[np.array(order).reshape(-1)].reshape(-1)


def following(x: Array) -> Array:
  """[B, T, ...]: at every place of a row what stands at the next; then zeros.

  The order is that in which the columns lie on the shards.
  """
  layout, length = rules.current(), x.shape[1]
  order = np.arange(length) if layout is None else columns(layout, length)
  if layout is None or layout.order != "zigzag":
    moved = jnp.roll(x, -1, axis=1)
  else:
    moved = x[:, np.argsort(order)[(order + 1) % length]]
  has_next = (order < length - 1).reshape(1, -1, *(1,) * (x.ndim - 2))
  return jnp.where(has_next, moved, jnp.zeros((), x.dtype))


def on_shards(
  function: Callable[..., Array],
  q: Array,
  k: Array,
  v: Array,
  mask: Any,
  of_heads: Any = None,
) -> Array:
  """Runs function(q, k, v, mask, of_heads) on each shard's rows, positions and
  heads.

  Args:
    function: one of attention; sees what lies on its shard.
    q: queries [B, T, N, H].
    k: keys [B, S, K, H]; one head is there for the queries of all shards.
    v: values.
    mask: a tree of arrays [B, T], [B, S] or [B].
    of_heads: a tree of arrays [N].
  """
  layout = rules.current()
  if layout is None:
    return function(q, k, v, mask, of_heads)
  table = layout.rules.activations
  wide = P(*layout.rows, table["act_heads"])
  narrow = P(*layout.rows, table["act_kv_heads"] if k.shape[2] > 1 else None)
  return jax.shard_map(
    function,
    in_specs=(
      wide,
      narrow,
      narrow,
      jax.tree.map(lambda x: P(*layout.rows[: x.ndim]), mask),
      jax.tree.map(lambda _: P(table["act_heads"]), of_heads),
    ),
    out_specs=wide,
    check_vma=False,  # Pallas does not say what its outputs vary over
  )(q, k, v, mask, of_heads)


def ring(
  step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, travel: Any
) -> tuple[Any, Any]:
  """Runs carry, travel = step(carry, travel) with the travel of every shard.

  After each step it goes on to the next shard; in the end it is home again.
  """
  n = jax.lax.axis_size(AXIS)
  to_next = [(i, (i + 1) % n) for i in range(n)]

  def turn(state, _):
    carry, travel = step(*state)
    move = lambda x: jax.lax.ppermute(x, AXIS, to_next)  # noqa: E731
    return (carry, jax.tree.map(move, travel)), None

  state, _ = jax.lax.scan(turn, (carry, travel), length=n)
  return state


def gather(x: Array) -> Array:
  """Own positions -> all positions, as they lie on the shards."""
  return jax.lax.all_gather(x, AXIS, axis=1, tiled=True)


def own(x: Array, dim: int) -> Array:
  """What every shard has whole -> this shard's part of a dimension."""
  size = x.shape[dim] // jax.lax.axis_size(AXIS)
  start = jax.lax.axis_index(AXIS) * size
  return jax.lax.dynamic_slice_in_dim(x, start, size, dim)


def to_heads(x: Array) -> Array:
  """Own positions of all heads -> all positions of own heads."""
  return jax.lax.all_to_all(x, AXIS, 2, 1, tiled=True)


def to_positions(x: Array) -> Array:
  """The way back."""
  return jax.lax.all_to_all(x, AXIS, 1, 2, tiled=True)
