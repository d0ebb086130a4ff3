"""Experts: routing by hand, losses as transformers', no token lost unseen.

N6, S13. Parity of whole models: tests/models/test_parity.py, test_golden.py.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp

from benchmarks.parity import cases
from models import families
from models.layers import moe
from sharding import expert, mesh, rules

MIXTRAL = cases.CASES["mixtral"]


@pytest.mark.parametrize("n_slots", [1, 2, 3, 7, 24])
def test_slots_are_those_of_a_loop(n_slots):
  """First choices first, then in order of position; padding takes no room."""
  rng = np.random.default_rng(n_slots)
  n_experts, shape = 4, (3, 12, 2)
  ids = np.stack(
    [
      [rng.permutation(n_experts)[:2] for _ in range(shape[1])]
      for _ in range(shape[0])
    ]
  ).astype(np.int32)
  live = rng.random(shape[:2]) < 0.8
  tokens, slots = moe.places(
    jnp.asarray(ids), jnp.asarray(live), n_experts, n_slots
  )
  for row in range(shape[0]):
    room = {e: [] for e in range(n_experts)}
    for choice in range(2):
      for t in range(shape[1]):
        e = int(ids[row, t, choice])
        slot = n_experts * n_slots
        if live[row, t] and len(room[e]) < n_slots:
          slot = e * n_slots + len(room[e])
          room[e].append(t)
        assert int(slots[row, t, choice]) == slot
    for e, inside in room.items():
      padded = inside + [shape[1]] * (n_slots - len(inside))
      assert tokens[row, e].tolist() == padded


def _layer(capacity_factor):
  config = moe.Config(n_experts=4, n_active=2, capacity_factor=capacity_factor)
  layer = moe.Experts(config, 12, "silu", jnp.dtype("float32"))
  x = jax.random.normal(jax.random.key(0), (2, 16, 8))
  live = jnp.ones((2, 16), bool).at[1, 10:].set(False)
  init = jax.jit(lambda: nn.unbox(layer.init(jax.random.key(1), x, live, True)))
  params = init()["params"]
  # Routers start near zero: make some experts wanted, so that some overflow.
  params["router"] = 3 * jax.random.normal(jax.random.key(2), (8, 4))
  return layer, params, x, live


def test_a_layer_is_the_sum_over_its_chosen_experts():
  """Against a loop in numpy, with a capacity that many tokens do not fit."""
  layer, params, x, live = _layer(0.75)
  run = jax.jit(
    lambda p: layer.apply({"params": p}, x, live, False, mutable=["figures"])
  )
  out, sown = run(params)
  w = jax.tree.map(np.float64, params)
  x64 = np.float64(x)
  n_slots = int(np.ceil(16 * 2 / 4 * 0.75))
  n_dropped = 0
  for row in range(2):
    room, expected = np.zeros(4, int), np.zeros((16, 8))
    logits = x64[row] @ w["router"]
    order = np.argsort(-logits, axis=1)[:, :2]
    for choice in range(2):
      for t in range(16):
        if not live[row, t]:
          continue
        e = order[t, choice]
        if room[e] == n_slots:
          n_dropped += 1
          continue
        room[e] += 1
        chosen = np.exp(logits[t, order[t]])
        gate, up = x64[row, t] @ w["gate"][e], x64[row, t] @ w["up"][e]
        y = (gate / (1 + np.exp(-gate)) * up) @ w["down"][e]
        expected[t] += chosen[choice] / chosen.sum() * y
    np.testing.assert_allclose(out[row], expected, atol=1e-6)
  ((told, n_sent),) = sown["figures"]["dropped"]
  assert n_dropped > 0
  assert (int(told), int(n_sent)) == (n_dropped, 26 * 2)


def test_room_for_all_is_dropless():
  """Capacity without end equals ragged groups, in value and gradient (S13)."""
  found = []
  for factor in (2.0, None):  # 2.0 x 16 x 2 / 4: every token in one expert
    layer, params, x, live = _layer(factor)

    def total(params, x, layer=layer, live=live):
      return jnp.square(layer.apply({"params": params}, x, live, False)).sum()

    found.append(jax.jit(jax.value_and_grad(total, (0, 1)))(params, x))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found
  )


@pytest.mark.parametrize("factor", [2.0, None])  # room for all, in any part
@pytest.mark.parametrize(
  "sizes",
  [dict(data=2, context=4), dict(data=1, expert=2, context=2, tensor=2)],
  ids=["context", "expert x context x tensor"],
)
def test_parts_of_rows_give_what_whole_rows_give(factor, sizes):
  """In value, gradient and losses; a part of a row has a room of its own."""
  layer, params, x, live = _layer(factor)
  layout = rules.make(mesh.make(mesh.Config(**sizes)), "expert_tensor")

  def total(params, x):
    out, sown = layer.apply(
      {"params": params}, x, live, False, mutable=["losses", "figures"]
    )
    return jnp.square(out).sum(), sown

  run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
  expected = jax.device_get(run(params, x))
  with layout.use():
    found = jax.device_get(jax.jit(run)(params, x))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    found,
    expected,
  )


def test_padding_neither_changes_nor_is_changed():
  for factor in (0.75, None):
    layer, params, x, live = _layer(factor)
    out = layer.apply({"params": params}, x, live, False)
    other = jnp.where(live[..., None], x, 100.0)
    again = layer.apply({"params": params}, other, live, False)
    np.testing.assert_array_equal(out[live], again[live])
    assert not np.asarray(out[~live]).any()


def _losses(logits, ids, live):
  probs = jax.nn.softmax(logits)
  return moe.losses(live.sum(), *moe.loss_sums(logits, probs, ids, live))


def test_the_balance_loss_by_hand():
  """Even routing gives J, one expert for all gives about E (2101.03961)."""
  live = jnp.ones((1, 8), bool)
  ids = jnp.arange(8).reshape(1, 8, 1) % 4
  even, z = _losses(jnp.zeros((1, 8, 4)), ids, live)
  np.testing.assert_allclose((even, z), (1, np.log(4) ** 2), rtol=1e-6)
  one = jnp.zeros((1, 8, 4)).at[..., 2].set(50.0)
  worst, _ = _losses(one, jnp.full((1, 8, 1), 2), live)
  np.testing.assert_allclose(worst, 4, rtol=1e-6)


@pytest.mark.parity
def test_the_balance_loss_is_that_of_transformers():
  torch = pytest.importorskip("torch")
  from transformers.models.mixtral import modeling_mixtral

  logits = np.random.default_rng(0).normal(size=(2, 16, 5)).astype(np.float32)
  live = np.arange(32).reshape(2, 16) % 5 > 0
  _, ids = jax.lax.top_k(logits, 2)
  ours, _ = _losses(jnp.asarray(logits), ids, jnp.asarray(live))
  theirs = modeling_mixtral.load_balancing_loss_func(
    (torch.tensor(logits.reshape(32, 5)),), 5, 2, torch.tensor(live).int()
  )
  np.testing.assert_allclose(ours, float(theirs), rtol=1e-6)


def test_experts_in_bf16_choose_by_fp32_logits():
  """The router's product is fp32 whatever the layers compute in (N6)."""
  config = dataclasses.replace(MIXTRAL, dtype="bfloat16", n_layers=1)
  one = jnp.ones((1, 4), jnp.int32)
  jaxpr = jax.make_jaxpr(
    lambda p: families.build(config).apply({"params": p}, one, one, one)[0]
  )(families.abstract(config))
  kinds = {
    str(equation.invars[0].aval.dtype)
    for equation in _equations(jaxpr.jaxpr)
    if equation.primitive.name == "top_k"
  }
  assert kinds == {"float32"}


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from _equations(inner)


def _stand_in(
  rows, empty, starts, sizes, places_there, sizes_here, *, axis_name
):
  """`jax.lax.ragged_all_to_all`, which no CPU has, out of all-gathers."""
  del sizes_here
  own, n_rows = jax.lax.axis_index(axis_name), len(empty)
  everything = [
    jax.lax.all_gather(x, axis_name)
    for x in (rows, starts, sizes, places_there)
  ]
  out, at = empty, jnp.arange(len(rows))
  for rows, starts, sizes, to in zip(*everything, strict=True):
    nth = at - starts[own]
    to = jnp.where((nth >= 0) & (nth < sizes[own]), to[own] + nth, n_rows)
    out = out.at[to].set(rows, mode="drop")
  return out


@pytest.mark.parametrize("n_shards", [2, 4])
def test_rows_that_are_sent_are_those_that_are_gathered(n_shards, monkeypatch):
  """Forward and backward, where experts are more or fewer than choices."""
  layer, params, x, live = _layer(None)
  x, live = (jnp.tile(a, (4, *(1,) * (a.ndim - 1))) for a in (x, live))
  x *= jnp.linspace(0.5, 1.5, 8)[:, None, None]
  sizes = dict(data=8 // n_shards, expert=n_shards)
  layout = rules.make(mesh.make(mesh.Config(**sizes)), "expert")

  def loss(params, x):
    out = layer.apply({"params": params}, x, live, True)
    return (out**2).sum(), out

  def run():
    with layout.use():
      gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
      return jax.jit(gradient)(params, x)

  wanted = run()
  monkeypatch.setattr(jax.lax, "ragged_all_to_all", _stand_in)
  monkeypatch.setattr(expert.Group, "sends", True)
  for ours, theirs in zip(*map(jax.tree.leaves, (run(), wanted)), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
