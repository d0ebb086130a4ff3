"""A layer of experts: each token passes through few of many feed-forwards.

Top-k gating: arXiv 1701.06538.  Capacity, balance loss: Switch, 2101.03961.
Router z-loss: ST-MoE, 2202.08906.  Dropless: MegaBlocks, 2211.15841.
Shared experts: DeepSeekMoE, 2401.06066.  Groups: DeepSeek-V2, 2405.04434.
Balance by a bias instead of a loss: 2408.15664, DeepSeek-V3, 2412.19437.

Without a capacity every token reaches its experts: tokens are sorted by expert
and multiplied in ragged groups. With one, each row of the batch has room for C
tokens in each expert and the rest pass by; shapes are then known to the
compiler, and only the buckets travel between the groups of experts.

With a bias the router chooses by score + bias, and gates by the score alone. No
gradient trains that bias: what arrives at the optimizer in its place is by how
much more tokens than the mean an expert had, which adds up over micro-batches
and devices, and the optimizer takes a step of fixed length against its sign.
Extra letters: J choices of a token, U choices of all tokens.
"""

import dataclasses
import math
from typing import Annotated, Literal

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from configs import fields
from configs.ranges import Count, Natural, NonNegative, Positive
from models.layers.dense import vector, weight
from models.layers.mlp import ACTIVATIONS, MLP
from models.weights import einsum, ragged
from sharding import expert


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How many experts, and how tokens come to them."""

  n_experts: Count
  n_active: Count  # experts that a token passes through
  n_shared: Natural = 0  # experts beside them that all tokens pass through
  shared_gated: bool = False  # every token says how far; Qwen2-MoE
  scores: Literal["softmax", "sigmoid"] = "softmax"  # sigmoid in DeepSeek-V3
  gates_normed: bool = True  # gates of the chosen add up to 1, before the scale
  gate_scale: Positive = 1.0  # 16 in DeepSeek-V2, 2.5 in V3
  n_groups: Count = 1  # of experts that lie side by side; 8 in DeepSeek
  n_active_groups: Count = 1  # groups that a token's experts may come from
  # Experts of a group whose scores together rank it: 1 in DeepSeek-V2, 2 in V3.
  n_ranking: Count = 1
  biased: bool = False  # a bias evens the loads out: see optim.bias_speed
  # Room of an expert in a row (or in a shard's part of it), in shares of an
  # even load; 1.25 in Switch. None: dropless, as evaluation and decoding are.
  capacity_factor: Annotated[float, "(0, inf)"] | None = None
  balance_weight: NonNegative = 0.0  # of the balance loss; 0.02 in Mixtral
  z_weight: NonNegative = 0.0  # of the router's z-loss; 1e-3 in ST-MoE

  def __post_init__(self):
    fields.check(self)
    if self.shared_gated and not self.n_shared:
      raise ValueError(
        f"shared_gated={self.shared_gated} with n_shared={self.n_shared}: there "
        "are no shared experts to gate."
      )
    if self.n_active > self.n_experts:
      raise ValueError(
        f"n_active={self.n_active} is more than n_experts={self.n_experts}."
      )
    if self.n_experts % self.n_groups:
      raise ValueError(
        f"n_groups={self.n_groups} does not divide n_experts={self.n_experts}."
      )
    if self.n_active_groups > self.n_groups:
      raise ValueError(
        f"n_active_groups={self.n_active_groups} is more than n_groups="
        f"{self.n_groups}."
      )
    size = self.n_experts // self.n_groups
    if self.n_active > self.n_active_groups * size:
      raise ValueError(
        f"n_active={self.n_active} is more than the {size} experts of each of "
        f"n_active_groups={self.n_active_groups} (n_experts={self.n_experts}, "
        f"n_groups={self.n_groups})."
      )
    if self.n_ranking > (size if self.n_groups > 1 else 1):
      raise ValueError(
        f"n_ranking={self.n_ranking} with n_groups={self.n_groups} of {size} "
        "experts: it ranks groups by so many of their experts."
      )

  def score(self, logits: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
    """What every token scores every expert."""
    if self.scores == "sigmoid":
      return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, axis=-1)


class Experts(nn.Module):
  """sum over the chosen experts of gate * down(act(gate x) * up x), and shared
  ones for all tokens.

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
    ranks_BTE = jax.lax.stop_gradient(c.score(logits_BTE))
    bias_E = None
    if c.biased:
      bias_E = vector(self, "bias", (c.n_experts,), ("balance",))
      ranks_BTE += jax.lax.stop_gradient(bias_E)[None, None]
    has_room = c.capacity_factor is None or deterministic
    send = _dropless if has_room else _with_capacity

    def routed(group, rows, weights):
      x, logits, ranks, live = rows
      ids, scores = choose(c, ranks), c.score(logits)
      gates = gates_of(c, scores, ids) * live[..., None]
      out, n_dropped = send(self, group, x, ids, gates, live, weights)
      sums = (n_dropped, live.sum(), *loss_sums(logits, scores, ids, live))
      return out.astype(x.dtype), group.total(sums)

    out, (n_dropped, n_live, *sums) = expert.on_shards(
      routed, (x, logits_BTE, ranks_BTE, live), weights
    )
    if bias_E is not None:
      load_E = sums[0]
      out = _moving(out, bias_E, load_E - load_E.mean())
      self.sow("figures", "overload", (load_E.max(), load_E.mean()))
    if c.n_shared:
      d_ff = c.n_shared * self.d_ff
      shared = MLP(d_ff, self.activation, self.dtype, gated=True, name="shared")
      y = shared(x)
      if c.shared_gated:
        w = weight(
          self, "shared_gate", (d_model,), ("embed",), dtype=self.dtype
        )
        gate_BT = einsum("BTD,D->BT", x, w, self.dtype, f32)
        y *= jax.nn.sigmoid(gate_BT)[..., None].astype(y.dtype)
      out += y
    balance, z = losses(n_live, *sums)
    self.sow("losses", "router", c.balance_weight * balance + c.z_weight * z)
    self.sow("figures", "balance", (balance, jnp.ones(())))
    n_sent = n_live.astype(jnp.float32) * c.n_active
    self.sow("figures", "dropped", (n_dropped.astype(jnp.float32), n_sent))
    return out


def choose(config: Config, ranks: Float[Array, "B T E"]) -> Int[Array, "B T J"]:
  """The experts of every token: the highest ranks of the best groups."""
  c = config
  if c.n_groups > 1:
    ranks_BTGE = ranks.reshape(*ranks.shape[:2], c.n_groups, -1)
    best_BTG = jax.lax.top_k(ranks_BTGE, c.n_ranking)[0].sum(-1)
    _, groups = jax.lax.top_k(best_BTG, c.n_active_groups)
    is_open = jax.nn.one_hot(groups, c.n_groups).sum(2) > 0
    ranks = jnp.where(is_open[..., None], ranks_BTGE, -jnp.inf)
    ranks = ranks.reshape(*ranks.shape[:2], -1)
  return jax.lax.top_k(ranks, c.n_active)[1]


def gates_of(
  config: Config, scores: Float[Array, "B T E"], ids: Int[Array, "B T J"]
) -> Float[Array, "B T J"]:
  """What the output of each chosen expert is multiplied by."""
  gates = jnp.take_along_axis(scores, ids, axis=-1)
  if config.gates_normed:
    gates /= gates.sum(-1, keepdims=True) + 1e-20  # all sigmoids may be 0
  return config.gate_scale * gates


@jax.custom_vjp
def _moving(
  x: Float[Array, "B T D"], bias: Float[Array, "E"], excess: Float[Array, "E"]
) -> Float[Array, "B T D"]:
  """x; what comes back as the gradient of the bias is `excess`."""
  del bias, excess
  return x


_moving.defvjp(
  lambda x, bias, excess: (x, excess),
  lambda excess, g: (g, excess, jnp.zeros_like(excess)),
)


def loss_sums(
  logits: Float[Array, "B T E"],
  scores: Float[Array, "B T E"],
  ids: Int[Array, "B T J"],
  live: Bool[Array, "B T"],
) -> tuple[Float[Array, "E"], Float[Array, "E"], Float[Array, ""]]:
  """Sums over live tokens: those that chose each expert, its share of their
  scores, and log(Z)^2.
  """
  alive_BT = live.astype(jnp.float32)
  chose_BTE = jax.nn.one_hot(ids, logits.shape[-1]).sum(2)
  shares_BTE = scores / (scores.sum(-1, keepdims=True) + 1e-20)
  z_BT = jnp.square(jax.nn.logsumexp(logits, axis=-1))
  return (
    jnp.einsum("BT,BTE->E", alive_BT, chose_BTE),
    jnp.einsum("BT,BTE->E", alive_BT, shares_BTE),
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
  expert e and P_e its mean share of their scores: J when all is even, E at worst.
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
  """Every token reaches its experts: it is sent there, or all are gathered."""
  del live  # padding has a gate of 0
  if group.sends:
    return _sent(module, group, x, ids, gates, weights)
  x_BTD, ids, gates = group.gather(x), group.gather(ids), group.gather(gates)
  n_here, n_choices = jax.tree.leaves(weights)[0].shape[0], ids.shape[-1]
  own_U = ids.reshape(-1) - group.first(n_here)
  # What belongs to others is sorted behind all groups and counts as zero.
  own_U = jnp.where((own_U >= 0) & (own_U < n_here), own_U, n_here)
  order_U = jnp.argsort(own_U, stable=True)
  token_U = order_U // n_choices
  x_UD = x_BTD.reshape(-1, x.shape[-1])[token_U]
  y_UD = _by_expert(module, x_UD, own_U[order_U], weights)
  y_UD *= gates.reshape(-1)[order_U][:, None]
  out = jnp.zeros_like(y_UD, shape=(len(order_U) // n_choices, x.shape[-1]))
  out = out.at[token_U].add(y_UD).reshape(x_BTD.shape)
  return group.add_up(out), jnp.zeros((), jnp.int32)


def _sent(module, group, x, ids, gates, weights):
  """Rows travel to the shards of their experts, and what comes of them back.

  There is room for the worst case, that all of the group's choose experts of
  one shard; on the wire is what is chosen.
  """
  n_here, n_choices = jax.tree.leaves(weights)[0].shape[0], ids.shape[-1]
  order_U = jnp.argsort(ids.reshape(-1), stable=True)
  token_U = order_U // n_choices
  x_UD = x.reshape(-1, x.shape[-1])[token_U]
  loads_SE = group.loads(
    jnp.bincount(ids.reshape(-1), length=group.size * n_here)
  )
  counts_SS = loads_SE.reshape(group.size, group.size, n_here).sum(-1)
  # A token chooses an expert once: of the few here, each once.
  n_room = group.size * len(order_U) // n_choices * min(n_choices, n_here)
  x_RD = group.send(x_UD, n_room, counts_SS)

  # What has come is sorted by shard, and for each by expert.
  first = group.first(n_here)
  loads_SE = jax.lax.dynamic_slice_in_dim(loads_SE, first, n_here, 1)
  ends = jnp.cumsum(loads_SE.reshape(-1))
  at_R = jnp.cumsum(jnp.zeros(n_room + 1, jnp.int32).at[ends].add(1))[:-1]
  own_R = jnp.where(at_R < len(ends), at_R % n_here, n_here)
  order_R = jnp.argsort(own_R, stable=True)
  y_RD = _by_expert(module, x_RD[order_R], own_R[order_R], weights)
  y_RD = jnp.zeros_like(y_RD).at[order_R].set(y_RD, unique_indices=True)

  y_UD = group.send(y_RD, len(order_U), counts_SS.T)
  y_UD *= gates.reshape(-1)[order_U][:, None]
  out = jnp.zeros_like(y_UD, shape=(len(order_U) // n_choices, x.shape[-1]))
  out = out.at[token_U].add(y_UD).reshape(x.shape)
  return out, jnp.zeros((), jnp.int32)


def _by_expert(module, x_UD, own_U, weights):
  """Rows that are sorted by the number of their expert here; 0 for the rest."""
  n_here = jax.tree.leaves(weights)[0].shape[0]
  sizes_E = jnp.bincount(own_U, length=n_here + 1)[:n_here].astype(jnp.int32)
  act = ACTIVATIONS[module.activation]
  gate_UF, up_UF = (
    ragged(x_UD, weights[name], sizes_E, module.dtype)
    for name in ("gate", "up")
  )
  y_UD = ragged(act(gate_UF) * up_UF, weights["down"], sizes_E, module.dtype)
  # Rows that no group covers hold anything.
  return jnp.where((own_U < n_here)[:, None], y_UD, 0)
