"""Norms and feed-forward layers by definition (N11); gradients of every layer."""

import math

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta
from jax import numpy as jnp

from models.layers import mask, norm, position
from models.layers.attention import Attention
from models.layers.mlp import MLP
from models.layers.reference import attend

F32 = jnp.dtype("float32")
EPSILON = 0.02  # of the differences: their error grows with its 4th power


def normal(*shape, seed=0):
  return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_rms_norm_has_epsilon_under_the_root():
  x, scale = normal(2, 3, 8) * 1e-3, 1 + 0.1 * normal(8, seed=1)
  wide = np.float64(x)
  rms = np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(
    norm.rms_norm(x, scale, 1e-5),
    wide / rms * np.float64(scale),
    rtol=1e-5,
    atol=1e-6,
  )


def test_layer_norm_has_epsilon_under_the_root():
  x, scale, bias = normal(2, 3, 8), 1 + 0.1 * normal(8, seed=1), normal(8)
  x = 1e-3 * x + 100  # the mean leaves first: digits are not lost
  wide = np.float64(x)
  std = np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
  normed = (wide - wide.mean(-1, keepdims=True)) / std
  np.testing.assert_allclose(
    norm.layer_norm(x, scale, bias, 1e-5),
    normed * np.float64(scale) + np.float64(bias),
    rtol=0,
    atol=2e-3,
  )


def test_norms_of_bf16_are_fp32_rounded_once():
  x, scale, bias = normal(4, 64), 1 + 0.1 * normal(64, seed=1), normal(64)
  low = x.astype(jnp.bfloat16)
  wide = low.astype(F32)
  for got, expected in (
    (norm.rms_norm(low, scale, 1e-6), norm.rms_norm(wide, scale, 1e-6)),
    (
      norm.layer_norm(low, scale, bias, 1e-6),
      norm.layer_norm(wide, scale, bias, 1e-6),
    ),
  ):
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, expected.astype(jnp.bfloat16))


ERF = np.vectorize(math.erf)
ACTIVATIONS = {
  "relu": lambda x: np.maximum(x, 0),
  "silu": lambda x: x * sigmoid(x),
  "gelu": lambda x: x * (1 + ERF(x / 2**0.5)) / 2,
  "gelu_tanh": lambda x: (
    x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2
  ),
}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_its_definition(activation, gated):
  layer = MLP(12, activation, F32, gated=gated, biased=True)
  x, params = start(layer, normal(2, 3, 8))
  p = {name: np.float64(leaf) for name, leaf in params.items()}
  act = ACTIVATIONS[activation]
  wide = np.float64(x)
  up = wide @ p["up"] + p["up_bias"]
  h = act(wide @ p["gate"] + p["gate_bias"]) * up if gated else act(up)
  np.testing.assert_allclose(
    layer.apply({"params": params}, x),
    h @ p["down"] + p["down_bias"],
    rtol=1e-5,
    atol=1e-5,
  )


def start(layer: nn.Module, x, *rest):
  """The input, and parameters with biases and scales off 0 and 1."""
  shapes = jax.eval_shape(
    lambda: meta.unbox(layer.init(jax.random.key(0), x, *rest)["params"])
  )
  leaves, tree = jax.tree.flatten(shapes)
  drawn = [0.5 * normal(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)]
  return x, jax.tree.unflatten(tree, drawn)


def tokens_mask(n_tokens):
  positions = jnp.tile(jnp.arange(n_tokens), (2, 1))
  return mask.of_tokens(positions, jnp.ones_like(positions))


def attention(**options):
  def layer():
    module = Attention(n_heads=4, n_kv_heads=2, d_head=4, dtype=F32, **options)
    seen = tokens_mask(6)
    turned = position.rotary(seen.q_positions, 4, 10_000.0)
    x, params = start(module, normal(2, 6, 8), seen, turned)
    run = lambda x, p: module.apply({"params": p}, x, seen, turned)[0]  # noqa: E731
    return run, (x, params)

  return layer


def mlp(activation, **options):
  def layer():
    module = MLP(12, activation, F32, **options)
    return lambda x, p: module.apply({"params": p}, x), start(
      module, normal(2, 3, 8)
    )

  return layer


def kernel(**options):
  def layer():
    seen = tokens_mask(6)
    run = lambda q, k, v, o: attend(q, k, v, seen, softcap=2.0, **o)  # noqa: E731
    qkv = (normal(2, 6, 4, 4), normal(2, 6, 2, 4), normal(2, 6, 2, 4, seed=1))
    return run, (*qkv, options)

  return layer


def rotation():
  phases = position.rotary(tokens_mask(6).q_positions, 4, 10_000.0)
  return lambda x: position.rotate(x, phases), (normal(2, 6, 2, 4),)


LAYERS = {
  "rms_norm": lambda: (
    lambda x, s: norm.rms_norm(x, s, 1e-5),
    (normal(2, 3, 8), normal(8)),
  ),
  "layer_norm": lambda: (
    lambda x, s, b: norm.layer_norm(x, s, b, 1e-5),
    (normal(2, 3, 8), normal(8), normal(8, seed=1)),
  ),
  "mlp_gelu": mlp("gelu", biased=True),
  "mlp_gelu_tanh": mlp("gelu_tanh"),
  "mlp_gated": mlp("silu", gated=True),
  "attention": attention(qkv_biased=True, out_biased=True),
  "attention_normed": attention(qk_norm_epsilon=1e-5, window=3),
  "attend": kernel(sinks_N=normal(4), bias_NTS=normal(4, 6, 6)),
  "rotate": rotation,
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_differences(name):
  """To 1e-3, along the gradient and a random direction; five points: N2."""
  run, arguments = LAYERS[name]()
  weigh = normal(*jax.eval_shape(run, *arguments).shape, seed=99)

  @jax.jit
  def values_and_slope(arguments):
    def loss(arguments):
      return (weigh * run(*arguments)).sum()

    def at(step):
      return run(*jax.tree.map(lambda a, d: a + step * d, arguments, along))

    gradients = jax.grad(loss)(arguments)
    leaves, tree = jax.tree.flatten(gradients)
    along = tree.unflatten(
      [
        g / jnp.linalg.norm(g) + 0.1 * normal(*g.shape, seed=i)
        for i, g in enumerate(leaves)
      ]
    )
    products = jax.tree.map(lambda g, d: (g * d).sum(), gradients, along)
    steps = EPSILON * jnp.array([-2.0, -1.0, 1.0, 2.0])
    return jax.lax.map(at, steps), sum(jax.tree.leaves(products))

  values, slope = values_and_slope(arguments)
  sums = np.tensordot(np.float64(values), np.float64(weigh), weigh.ndim)
  difference = sums @ [1, -8, 8, -1] / (12 * EPSILON)
  np.testing.assert_allclose(slope, difference, rtol=1e-3)
