"""Experts split over the mesh axis `expert`: tokens go to where they lie.

Every shard routes its own tokens. With a capacity, its buckets then go to the
shards that hold their experts and come back: two all-to-alls. Without one,
nobody knows ahead how much goes where. On TPUs as much goes as there is, into
room for the worst case (ragged all-to-all); elsewhere the shards of a group
gather each other's rows, each computes its experts' part, and the parts are
added up where the rows belong. Where rows are split over `context`, every part of a row counts as a row:
it has a room of its own in each expert.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from sharding import rules

AXIS = "expert"


@dataclasses.dataclass(frozen=True)
class Group:
  """The shards that hold all experts together; one alone holds them all."""

  size: int = 1
  tokens: tuple[str, ...] = ()  # mesh axes that share the tokens

  def first(self, n_here: int) -> Array | int:
    """The number of this shard's first expert, of n_here."""
    return jax.lax.axis_index(AXIS) * n_here if self.size > 1 else 0

  def to_experts(self, x: Float[Array, "B E C D"]) -> Float[Array, "..."]:
    """Own rows of all experts -> the group's rows of own experts."""
    return self._exchange(x, 1, 0)

  def to_rows(self, x: Float[Array, "B E C D"]) -> Float[Array, "..."]:
    """The way back."""
    return self._exchange(x, 0, 1)

  def _exchange(self, x: Array, split: int, joined: int) -> Array:
    if self.size == 1:
      return x
    return jax.lax.all_to_all(x, AXIS, split, joined, tiled=True)

  def gather(self, x: Array) -> Array:
    """Own rows -> the group's rows."""
    if self.size == 1:
      return x
    return jax.lax.all_gather(x, AXIS, axis=0, tiled=True)

  def add_up(self, parts: Array) -> Array:
    """A part for each of the group's rows -> own rows, all parts added up."""
    if self.size == 1:
      return parts
    return jax.lax.psum_scatter(parts, AXIS, scatter_dimension=0, tiled=True)

  @property
  def sends(self) -> bool:
    """Whether rows travel one by one, to where their experts lie."""
    return self.size > 1 and rules.platform() == "tpu"

  def loads(self, own: Int[Array, "E"]) -> Int[Array, "S E"]:
    """Rows for each expert that each shard of the group has."""
    return jax.lax.all_gather(own, AXIS)

  def send(
    self, x: Float[Array, "U D"], n_rows: int, counts: Int[Array, "S S"]
  ) -> Float[Array, "..."]:
    """Sends as many rows as counts[own, s] to each shard s, one after another.

    Args:
      x: rows for the first shard, for the second, and so on.
      n_rows: room for what arrives: as much as all may send.
      counts: the same everywhere; transposed, the way back.

    Returns:
      Rows of the first shard, of the second, and so on; 0 behind them.
    """
    own = jax.lax.axis_index(AXIS)
    empty = jnp.zeros_like(x, shape=(n_rows, x.shape[1]))
    return jax.lax.ragged_all_to_all(
      x,
      empty,
      (jnp.cumsum(counts, 1) - counts)[own],
      counts[own],
      (jnp.cumsum(counts, 0) - counts)[own],
      counts[:, own],
      axis_name=AXIS,
    )

  def total(self, x: Any) -> Any:
    """The sum over all shards of the batch."""
    return jax.lax.psum(x, self.tokens) if self.tokens else x


def on_shards(
  function: Callable[..., tuple[Array, Any]], rows: tuple, weights: Any
) -> tuple[Array, Any]:
  """Runs function(group, rows, weights) -> (rows, totals) on every shard.

  Args:
    function: sees the rows of its shard, or its part of them, and the experts
      that lie there; its totals come from `Group.total`.
    rows: arrays [B, T, ...].
    weights: a tree of arrays [E, ...].
  """
  layout = rules.current()
  if layout is None or layout.shares_no_tokens:
    return function(Group(), rows, weights)
  axes = layout.token_axes
  size = layout.mesh.shape[AXIS] if AXIS in axes else 1
  return rules.on_rows(
    functools.partial(function, Group(size, axes)),
    rows,
    weights,
    split=(AXIS,) if size > 1 else (),
    out_specs=(layout.rows, P()),
  )
