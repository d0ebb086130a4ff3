"""A layer of experts: each token passes through few of many feed-forwards.

Top-k gating: arXiv 1701.06538.  Capacity, balance loss: Switch, 2101.03961.
Router z-loss: ST-MoE, 2202.08906.  Dropless: MegaBlocks, 2211.15841.

Without a capacity every token reaches its experts: tokens are sorted by expert
and multiplied in ragged groups. With one, each row of the batch has room for C
tokens in each expert and the rest pass by; shapes are then known to the
compiler, and only the buckets travel between the groups of experts.
Extra letters: J choices of a token, U choices of all tokens.
"""

import dataclasses
import math
from typing import Annotated

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from configs import fields
from configs.ranges import Count, NonNegative
from models.layers.dense import weight
from models.layers.mlp import ACTIVATIONS
from models.weights import einsum, ragged
from sharding import expert


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How many experts, and how tokens come to them."""

  n_experts: Count
  n_active: Count  # experts that a token passes through
  gates_normed: bool = True  # gates of the chosen add up to 1
  # Room of an expert in a row (or in a shard's part of it), in shares of an
  # even load; 1.25 in Switch. None: dropless, as evaluation and decoding are.
  capacity_factor: Annotated[float, "(0, inf)"] | None = None
  balance_weight: NonNegative = 0.0  # of the balance loss; 0.02 in Mixtral
  z_weight: NonNegative = 0.0  # of the router's z-loss; 1e-3 in ST-MoE

  def __post_init__(self):
    fields.check(self)
    if self.n_active > self.n_experts:
      raise ValueError(
        f"n_active={self.n_active} is more than n_experts={self.n_experts}."
      )


class Experts(nn.Module):
  """sum over the chosen experts of gate * down(act(gate x) * up x).

  Sows "losses", weighted, and "figures", as (sum, weight), for the objective.
  """

  config: Config
  d_ff: int
  activation: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    live: Bool[Array, "B T"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    c, d_model = self.config, x.shape[-1]
    # fp32: a choice between two near logits is a choice between two experts.
    f32 = jnp.dtype("float32")
    router = weight(
      self,
      "router",
      (d_model, c.n_experts),
      ("embed", "router"),
      dtype=f32,
    )
    wide = (c.n_experts, d_model, self.d_ff), ("experts", "expert_in", "mlp")
    back = (c.n_experts, self.d_ff, d_model), ("experts", "mlp", "expert_in")
    weights = {
      "gate": weight(self, "gate", *wide, dtype=self.dtype),
      "up": weight(self, "up", *wide, dtype=self.dtype),
      "down": weight(self, "down", *back, dtype=self.dtype),
    }
    logits_BTE = einsum("BTD,DE->BTE", x.astype(f32), router, f32)
    has_room = c.capacity_factor is None or deterministic
    send = _dropless if has_room else _with_capacity

    def routed(group, rows, weights):
      x, logits, live = rows
      top, ids = jax.lax.top_k(logits, c.n_active)
      norm = jax.nn.logsumexp(
        top if c.gates_normed else logits, axis=-1, keepdims=True
      )
      gates = jnp.exp(top - norm) * live[..., None]
      out, n_dropped = send(self, group, x, ids, gates, live, weights)
      sums = (n_dropped, live.sum(), *loss_sums(logits, ids, live))
      return out.astype(x.dtype), group.total(sums)

    out, (n_dropped, n_live, *sums) = expert.on_shards(
      routed, (x, logits_BTE, live), weights
    )
    balance, z = losses(n_live, *sums)
    self.sow("losses", "router", c.balance_weight * balance + c.z_weight * z)
    self.sow("figures", "balance", (balance, jnp.ones(())))
    n_sent = n_live.astype(jnp.float32) * c.n_active
    self.sow("figures", "dropped", (n_dropped.astype(jnp.float32), n_sent))
    return out


def loss_sums(
  logits: Float[Array, "B T E"],
  ids: Int[Array, "B T J"],
  live: Bool[Array, "B T"],
) -> tuple[Float[Array, "E"], Float[Array, "E"], Float[Array, ""]]:
  """Sums over live tokens: those that chose each expert, their probability of
  it, and log(Z)^2.
  """
  alive_BT = live.astype(jnp.float32)
  chose_BTE = jax.nn.one_hot(ids, logits.shape[-1]).sum(2)
  z_BT = jnp.square(jax.nn.logsumexp(logits, axis=-1))
  return (
    jnp.einsum("BT,BTE->E", alive_BT, chose_BTE),
    jnp.einsum("BT,BTE->E", alive_BT, jax.nn.softmax(logits, axis=-1)),
    (z_BT * alive_BT).sum(),
  )


def losses(
  n_live: Int[Array, ""],
  chose: Float[Array, "E"],
  probs: Float[Array, "E"],
  z: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Balance loss and z-loss of the sums of `loss_sums`.

  The balance is E * sum_e f_e P_e, where f_e is the share of tokens that chose
  expert e and P_e its mean probability: J when all is even, E at worst.
  """
  n = jnp.maximum(n_live, 1).astype(jnp.float32)
  return chose.shape[0] * (chose / n * probs / n).sum(), z / n


def _with_capacity(module, group, x, ids, gates, live, weights):
  """Sends buckets of C tokens a row to the experts, and back."""
  c, (n_rows, length, _) = module.config, x.shape
  even = length * c.n_active / c.n_experts
  n_slots = min(math.ceil(even * c.capacity_factor), length)
  token_BEC, slot_BTJ = places(ids, live, c.n_experts, n_slots)
  flat = token_BEC.reshape(n_rows, -1, 1)
  rows = jnp.take_along_axis(x, jnp.minimum(flat, length - 1), axis=1)
  rows = jnp.where(flat < length, rows, 0)
  x_BECD = group.to_experts(rows.reshape(*token_BEC.shape, -1))

  act = ACTIVATIONS[module.activation]
  gate_BECF, up_BECF = (
    einsum("BECD,EDF->BECF", x_BECD, weights[name], module.dtype)
    for name in ("gate", "up")
  )
  h_BECF = act(gate_BECF) * up_BECF
  y_BECD = einsum("BECF,EFD->BECD", h_BECF, weights["down"], module.dtype)
  y_BUD = group.to_rows(y_BECD).reshape(n_rows, -1, x.shape[-1])

  n_all = c.n_experts * n_slots
  slots = jnp.minimum(slot_BTJ, n_all - 1).reshape(n_rows, -1, 1)
  chosen_BTJD = jnp.take_along_axis(y_BUD, slots, axis=1).reshape(
    *ids.shape, -1
  )
  fits = slot_BTJ < n_all
  out = (chosen_BTJD * jnp.where(fits, gates, 0)[..., None]).sum(2)
  return out, (~fits & live[..., None]).sum()


def places(
  ids: Int[Array, "B T J"],
  live: Bool[Array, "B T"],
  n_experts: int,
  n_slots: int,
) -> tuple[Int[Array, "B E C"], Int[Array, "B T J"]]:
  """Which token lies in which slot, and the other way round.

  First choices go before second ones, early tokens before late ones.

  Returns:
    The token in each slot, T where it is empty; and the slot of each choice,
    expert * C + place, E * C where there was no room.
  """
  n_rows, length, n_choices = ids.shape
  n_all = length * n_choices
  # Choice by choice: all first ones, then all second ones. Padding comes last.
  ids_BU = jnp.where(live[..., None], ids, n_experts)
  ids_BU = ids_BU.swapaxes(1, 2).reshape(n_rows, n_all)
  order_BU = jnp.argsort(ids_BU, axis=1, stable=True)
  experts = jnp.arange(n_experts)[None, None]
  count_BE = jnp.equal(ids_BU[..., None], experts).sum(1)
  end_BE = jnp.cumsum(count_BE, axis=1)
  start_BE = end_BE - count_BE
  at_BEC = start_BE[..., None] + jnp.arange(n_slots)[None, None, :]
  choice_BEC = jnp.take_along_axis(
    order_BU, jnp.minimum(at_BEC, n_all - 1).reshape(n_rows, -1), axis=1
  ).reshape(at_BEC.shape)
  token_BEC = jnp.where(at_BEC < end_BE[..., None], choice_BEC % length, length)

  rank_BU = jnp.argsort(order_BU, axis=1)  # of each choice among the sorted
  own_start = jnp.take_along_axis(
    start_BE, jnp.minimum(ids_BU, n_experts - 1), axis=1
  )
  place_BU = rank_BU - own_start
  fits = (place_BU < n_slots) & (ids_BU < n_experts)
  slot_BU = jnp.where(fits, ids_BU * n_slots + place_BU, n_experts * n_slots)
  slot_BTJ = slot_BU.reshape(n_rows, n_choices, length).swapaxes(1, 2)
  return token_BEC, slot_BTJ


def _dropless(module, group, x, ids, gates, live, weights):
  """Sorts the group's tokens by expert; ragged groups, one for each here."""
  del live  # padding has a gate of 0
  x_BTD, ids, gates = group.gather(x), group.gather(ids), group.gather(gates)
  n_here, n_choices = jax.tree.leaves(weights)[0].shape[0], ids.shape[-1]
  own_U = ids.reshape(-1) - group.first(n_here)
  # What belongs to others is sorted behind all groups and counts as zero.
  own_U = jnp.where((own_U >= 0) & (own_U < n_here), own_U, n_here)
  order_U = jnp.argsort(own_U, stable=True)
  sizes_E = jnp.bincount(own_U, length=n_here + 1)[:n_here].astype(jnp.int32)
  token_U = order_U // n_choices
  x_UD = x_BTD.reshape(-1, x.shape[-1])[token_U]

  act = ACTIVATIONS[module.activation]
  gate_UF, up_UF = (
    ragged(x_UD, weights[name], sizes_E, module.dtype)
    for name in ("gate", "up")
  )
  y_UD = ragged(act(gate_UF) * up_UF, weights["down"], sizes_E, module.dtype)
  # Rows that no group covers hold anything.
  covered = jnp.arange(len(order_U)) < sizes_E.sum()
  scale_U = gates.reshape(-1)[order_U]
  y_UD = jnp.where(covered[:, None], y_UD, 0) * scale_U[:, None]
  out = jnp.zeros_like(y_UD, shape=(len(order_U) // n_choices, x.shape[-1]))
  out = out.at[token_U].add(y_UD).reshape(x_BTD.shape)
  return group.add_up(out), jnp.zeros((), jnp.int32)
