"""Routers' biases: moved by loads alone, and loads even out (2408.15664)."""

import chex
import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import numpy as jnp

from models.layers import moe
from train.core import optim

AXES = {
  "layer": {"w": ("embed", "mlp"), "bias": ("layers", "balance")},
  "norm": ("norm",),
}
PARAMS = {
  "layer": {"w": jnp.ones((3, 4)), "bias": jnp.ones((2, 4))},
  "norm": jnp.ones(3),
}
GRADS = {
  "layer": {
    "w": jnp.full((3, 4), 0.1),
    "bias": jnp.array([[900.0, -3.0, 0.0, -897.0], [1.0, 1.0, -1.0, -1.0]]),
  },
  "norm": jnp.full(3, 0.2),
}


def _without(tree):
  return {"layer": {"w": tree["layer"]["w"]}, "norm": tree["norm"]}


def _step(config, axes, params, grads):
  optimizer = optim.make(config, lambda _: 1.0, axes)
  state = optimizer.init(params)
  updates, state = jax.jit(optimizer.update)(grads, state, params)
  new = optax.apply_updates(params, updates)
  return new, optim.eval_params(state, new)


@pytest.mark.parametrize("name", [n for n in optim.CONFIGS if n != "lbfgs"])
def test_nothing_of_an_optimizer_sees_the_biases(name):
  """They step by `speed` against the sign; the others as if they were not."""
  kind = optim.CONFIGS[name]
  average = {"ema": 0.5} if hasattr(kind, "ema") else {}
  settings = dict(lr=0.1, weight_decay=0.5, clip=0.1, **average)
  config = kind(**settings, bias_speed=0.25)
  new, mean = _step(config, AXES, PARAMS, GRADS)
  expected = 1 - 0.25 * np.sign(GRADS["layer"]["bias"])
  np.testing.assert_array_equal(new["layer"]["bias"], expected)
  np.testing.assert_array_equal(mean["layer"]["bias"], expected)
  plain = _step(kind(**settings), *map(_without, (AXES, PARAMS, GRADS)))
  chex.assert_trees_all_equal(tuple(map(_without, (new, mean))), plain)


def test_a_speed_of_nothing_and_a_search_with_biases_are_refused():
  with pytest.raises(ValueError, match="bias_speed=0.1 moves nothing"):
    optim.make(
      optim.AdamW(lr=1.0, bias_speed=0.1, weight_decay=0.0),
      lambda _: 1.0,
      _without(AXES),
    )
  with pytest.raises(ValueError, match="lbfgs.*experts.biased=False"):
    optim.make(optim.LBFGS(), lambda _: 1.0, AXES)


def test_loads_even_out_where_a_router_prefers_some():
  """From 3.6 times the mean load of 2 of 16 experts to less than 1.2."""
  config = moe.Config(n_experts=16, n_active=2, scores="sigmoid", biased=True)
  layer = moe.Experts(config, 4, "silu", jnp.dtype("float32"))
  x = jax.random.normal(jax.random.key(0), (4, 64, 8)).at[..., 0].set(1.0)
  live = jnp.ones((4, 64), bool)
  boxed = layer.init(jax.random.key(1), x, live, False)["params"]
  params = nn.unbox(boxed)
  # The first direction is the same for all tokens: experts 0 to 3 are wanted.
  router = 0.3 * jax.random.normal(jax.random.key(2), (8, 16))
  params["router"] = router.at[0].set(jnp.where(jnp.arange(16) < 4, 1.5, -0.5))
  sgd = optim.SGD(lr=1.0, clip=None, bias_speed=0.01)
  axes = {"router": ("embed", "router"), "bias": ("balance",)}
  optimizer = optim.make(sgd, lambda _: 1.0, axes)

  def loss(bias):  # of it alone: the experts themselves are never computed
    out, sown = layer.apply(
      {"params": {**params, "bias": bias}}, x, live, False, mutable=["figures"]
    )
    ((most, mean),) = sown["figures"]["overload"]
    return out.sum(), most / mean

  @jax.jit
  def step(bias):
    excess, overload = jax.grad(loss, has_aux=True)(bias)
    held = {"router": params["router"], "bias": bias}
    grads = {"router": jnp.zeros((8, 16)), "bias": excess}
    updates, _ = optimizer.update(grads, optimizer.init(held), held)
    return bias + updates["bias"], overload

  bias, overloads = params["bias"], []
  for _ in range(120):
    bias, overload = step(bias)
    overloads.append(float(overload))
  assert overloads[0] > 3
  assert max(overloads[-10:]) < 1.3


def test_gates_do_not_see_the_bias():
  """The same shift for all changes nothing; a choice that is forced keeps its
  own score as its gate.
  """
  config = moe.Config(
    n_experts=4, n_active=1, scores="sigmoid", gates_normed=False, biased=True
  )
  logits = jnp.array([[[2.0, 1.0, 0.0, -1.0]]])
  scores = config.score(logits)
  ranks = scores + jnp.array([0.0, 0.0, 5.0, 0.0])[None, None]
  ids = moe.choose(config, ranks)
  assert ids.item() == 2
  np.testing.assert_allclose(moe.gates_of(config, scores, ids), 0.5)
