"""Optimizers: closed forms, laws of stacked weights, shardings of their state.

Oracles: numpy float64 written from the papers, optax on unstacked matrices,
torch.optim (parity).
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.core import optim, schedule

AXES = {
  "embed": {"table": ("vocab", "embed")},
  "layers": {
    "q": ("layers", "embed", "heads", "head"),
    "q_bias": ("layers", "heads", "head"),
    "o": ("layers", "heads", "head", "embed"),
    "up": ("layers", "embed", "mlp"),
    "scale": ("layers", "norm"),
  },
  "norm": ("norm",),
}
CONSTANT = schedule.Constant()
SIZES = {
  "vocab": 32,
  "embed": 16,
  "layers": 2,
  "heads": 2,
  "head": 8,
  "mlp": 24,
  "norm": 16,
}


def is_names(node):
  return isinstance(node, tuple)


def normal(seed, scale=1.0):
  """Parameters, or gradients, of the model that AXES describes."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda names: jnp.asarray(
      scale * rng.standard_normal([SIZES[n] for n in names]), jnp.float32
    ),
    AXES,
    is_leaf=is_names,
  )


def config(name, **fields):
  if name == "lbfgs":
    return optim.LBFGS(**fields)
  return optim.CONFIGS[name](**{"lr": 0.01, **fields})


def make(config, axes=AXES, factors=CONSTANT, total_steps=100):
  return optim.make(config, schedule.make(factors, total_steps), axes)


def bowl(params):
  return sum(jnp.sum(jnp.sin(x) ** 2) for x in jax.tree.leaves(params)) / 100


def descend(optimizer, params, n_steps, loss=bowl, state=None):
  """n_steps of full-batch descent, in the one call that fits all."""
  state = optimizer.init(params) if state is None else state

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(
      grads, state, params, value=value, grad=grads, value_fn=loss
    )
    return optax.apply_updates(params, updates), state

  for _ in range(n_steps):
    params, state = step(params, state)
  return params, state


def unroll(tree):
  """Stacked leaves -> one subtree a layer."""
  tree = dict(tree)
  layers = tree.pop("layers")
  for i in range(SIZES["layers"]):
    take = lambda x, i=i: x[1:] if is_names(x) else x[i]  # noqa: E731
    tree[f"layer_{i}"] = jax.tree.map(take, layers, is_leaf=is_names)
  return tree


@pytest.mark.parametrize("name", optim.CONFIGS)
def test_stacked_layers_train_as_unrolled_ones(name):
  settings = config(name)
  params = normal(0)
  stacked, _ = descend(make(settings), params, 3)
  unrolled, _ = descend(make(settings, unroll(AXES)), unroll(params), 3)
  chex.assert_trees_all_close(unroll(stacked), unrolled, atol=2e-6)
