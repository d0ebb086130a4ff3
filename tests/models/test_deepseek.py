"""DeepSeek: what the parity with transformers does not reach.

The token after next, kernels with values of another width, impossible configs.
"""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from configs import fields
from models import attention_kernels, deepseek, families, flops
from models.layers import mask, stack
from models.layers.reference import attend
from train.objectives import lm

PLAIN = cases.CASES["deepseek_v3"]
AHEAD = dataclasses.replace(PLAIN, ahead=True)


@pytest.fixture(scope="module")
def batch():
  return jax.tree.map(jnp.asarray, cases.batch(PLAIN))


@pytest.fixture(scope="module")
def trained(batch):
  """Loss, metrics and gradients with a weight of 0.3 of the token after next."""
  config = lm.Config(ahead_weight=0.3, chunk_tokens=8)
  objective, key = lm.make(config, AHEAD), jax.random.key(0)

  def loss(params):
    total, _, metrics = objective(params, batch, key)
    return total, metrics

  params = jax.tree.map(jnp.asarray, cases.params(AHEAD))
  return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def _rms(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(scale)


def test_the_token_after_next_is_predicted_as_the_paper_says(trained, batch):
  """2412.19437, equations 21 to 25, token by token in numpy."""
  params = jax.tree.map(jnp.asarray, cases.params(AHEAD))
  ahead, table = params["ahead"], np.float64(params["embed"]["table"])
  ids = batch.tokens, batch.positions, batch.segment_ids
  model = families.build(PLAIN)
  hidden, _ = jax.jit(lambda p: model.apply({"params": p}, *ids))(params)
  tokens, segments = np.asarray(batch.tokens), np.asarray(batch.segment_ids)
  rows = table[np.roll(tokens, -1, axis=1)]
  joined = np.concatenate(
    [
      _rms(rows, ahead["token_norm"]["scale"]),
      _rms(np.float64(hidden), ahead["hidden_norm"]["scale"]),
    ],
    axis=-1,
  )
  side = stack.Side(
    mask.of_tokens(batch.positions, batch.segment_ids),
    model.rotary(batch.positions),
  )
  block = deepseek.Block(AHEAD, "experts")  # proved by the parity
  run = jax.jit(lambda p, x: block.apply({"params": p}, x, side)[0])
  x = jnp.float32(joined @ np.float64(ahead["join"]))
  out = run(ahead["stack"]["layer_0"], x)
  logits = (
    _rms(np.float64(out), ahead["norm"]["scale"])
    @ np.float64(params["head"]["table"]).T
  )
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  total, n = 0.0, 0
  for row in range(2):
    for t in range(15):
      if segments[row, t] and segments[row, t] == segments[row, t + 1]:
        total -= log_probs[row, t, batch.targets[row, t + 1]]
        n += 1
  assert n == 6 + 4 + 15

  (loss, metrics), _ = trained
  found, weight = metrics["ahead_loss"]
  assert weight == n
  np.testing.assert_allclose(found, total, rtol=1e-5)
  np.testing.assert_allclose(loss, metrics["loss"][0] + 0.3 * total, rtol=1e-5)


def test_every_weight_is_trained_to_look_ahead(trained):
  _, gradients = trained
  for path, leaf in jax.tree.leaves_with_path(gradients):
    assert np.any(leaf), jax.tree_util.keystr(path)


def test_what_looks_ahead_is_nothing_to_evaluation(batch):
  """A key of None: the same bits as of the model without it."""
  params = jax.tree.map(jnp.asarray, cases.params(AHEAD))
  config = lm.Config(ahead_weight=0.3, chunk_tokens=8)
  there = jax.jit(lambda p: lm.make(config, AHEAD)(p, batch, None))(params)
  del params["ahead"]
  config = dataclasses.replace(config, ahead_weight=0.0)
  here = jax.jit(lambda p: lm.make(config, PLAIN)(p, batch, None))(params)
  jax.tree.map(np.testing.assert_array_equal, there, here)


@pytest.mark.parametrize(
  ("name", "billions"),
  [("deepseek_v3", 37), ("deepseek_v2", 21), ("deepseek_v2_lite", 2.4)],
)
def test_active_parameters_are_those_of_the_papers(name, billions):
  """2412.19437, section 4.2; 2405.04434, section 3.1.2 and appendix B."""
  n_active = flops.n_matmul_params(deepseek.PRESETS[name])
  assert abs(n_active / 1e9 / billions - 1) < 0.025


def test_looking_ahead_costs_training_a_layer_and_a_head():
  plain, ahead = (flops.train_per_token(c, 16) for c in (PLAIN, AHEAD))
  layer = flops.train_per_token(
    dataclasses.replace(PLAIN, n_layers=4), 16
  ) - plain  # fmt: skip
  norms, join = 3 * 32, 2 * 32 * 32
  head = 48 * 32
  assert ahead - plain == layer + 3 * 2 * (norms + join + head)
  served = (flops.forward_per_token(c, 16) for c in (PLAIN, AHEAD))
  assert len(set(served)) == 1


def _heads(d_head, d_value, length):
  draw = lambda i, d: jax.random.normal(  # noqa: E731
    jax.random.key(i), (2, length, 2, d)
  )
  positions = jnp.tile(jnp.arange(length), (2, 1))
  segments = 1 + (positions > 25)
  seen = mask.of_tokens(positions, segments)
  return draw(0, d_head), draw(1, d_head), draw(2, d_value), seen


@pytest.mark.parametrize("name", ["chunked", "splash"])
def test_kernels_take_values_of_another_width(name):
  """d_head 192 and d_value 128, as published, with a scale of its own."""
  length, options = {
    "splash": (128, dict(interpret=True)),
    "chunked": (40, dict(chunk=16)),
  }[name]
  q, k, v, seen = _heads(192, 128, length)
  kernel = getattr(attention_kernels, name)

  def run(function, **options):
    def loss(q, k, v):
      out = function(q, k, v, seen, scale=0.05, **options)
      return (out * jnp.cos(jnp.arange(128.0))[None, None, None]).sum(), out

    grad = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (_, out), grads = jax.jit(grad)(q, k, v)
    return out, *grads

  for ours, theirs in zip(run(kernel, **options), run(attend), strict=True):
    np.testing.assert_allclose(
      ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max()
    )


@pytest.mark.parametrize(
  "change",
  [
    dict(n_dense=3),
    dict(attention=dict(d_rotary=3)),
    dict(rope_scaling=None),
    dict(experts=dict(n_groups=3)),
    dict(experts=dict(n_active_groups=5)),
    dict(experts=dict(n_active=5)),
    dict(experts=dict(n_ranking=3)),
    dict(experts=dict(n_groups=1, n_active_groups=1)),
    dict(experts=dict(scores="tanh")),
  ],
  ids=str,
)
def test_impossible_models_are_refused_by_name(change):
  name, value = next(iter(change.items()))
  told = next(iter(value)) if isinstance(value, dict) else name
  if told == "rope_scaling":
    told = "mscale"
  with pytest.raises(ValueError, match=told):
    fields.make(deepseek.Config, change, "config.model", PLAIN)
