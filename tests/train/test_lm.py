"""The objective against closed forms: N7, N10; what it holds in memory."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from models import families
from train.objectives import lm

B, T, D, V = 3, 11, 8, 23


@pytest.fixture(scope="module")
def text():
  rng = np.random.default_rng(0)
  return dict(
    hidden=jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32),
    head=jnp.asarray(rng.normal(size=(V, D)), jnp.float32),
    targets=jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32),
    weights=jnp.asarray(rng.integers(0, 3, (B, T)), jnp.float32),
  )


def _plain(hidden, head, targets, weights, z_loss, smoothing, cap):
  """Softmax, one-hot, logarithm: as the papers write it."""
  logits = hidden @ head.T
  logits = logits if cap is None else cap * jnp.tanh(logits / cap)
  z = jnp.exp(logits).sum(-1, keepdims=True)
  p = jnp.exp(logits) / z
  wanted = jax.nn.one_hot(targets, V) * (1 - smoothing) + smoothing / V
  loss = -(wanted * jnp.log(p)).sum(-1) + z_loss * jnp.log(z[..., 0]) ** 2
  return (loss * weights).sum()


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize(
  "z_loss, smoothing, cap", [(0.0, 0.0, None), (1e-2, 0.1, 3.0)]
)
def test_chunks_give_the_plain_loss_and_gradient(
  text, chunk, z_loss, smoothing, cap
):
  config = lm.Config(
    z_loss=z_loss, label_smoothing=smoothing, chunk_tokens=chunk
  )

  def ours(hidden, head):
    both = lm.cross_entropy(
      config,
      families.Scoring(jnp.dtype("float32"), cap),
      hidden,
      head,
      text["targets"],
      text["weights"],
    )
    return 2 * both[0]  # a cotangent that is not one

  def plain(hidden, head):
    rest = text["targets"], text["weights"], z_loss, smoothing, cap
    return 2 * _plain(hidden, head, *rest)

  args = text["hidden"], text["head"]
  value, grads = jax.value_and_grad(ours, (0, 1))(*args)
  expected, expected_grads = jax.value_and_grad(plain, (0, 1))(*args)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(ours(*args), expected, rtol=1e-6)
  chex.assert_trees_all_close(grads, expected_grads, rtol=1e-5, atol=5e-6)


def test_sums_to_report(text):
  _, sums = lm.cross_entropy(
    lm.Config(), families.Scoring(jnp.dtype("float32")), **text
  )
  logits = np.asarray(text["hidden"] @ text["head"].T, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  targets, weights = np.asarray(text["targets"]), np.asarray(text["weights"])
  nll = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  hits = (logits.argmax(-1) == targets) * weights
  np.testing.assert_allclose(sums["loss"], (nll * weights).sum(), rtol=1e-6)
  np.testing.assert_allclose(sums["accuracy"], hits.sum())


def test_a_uniform_model_has_the_loss_log_v(text):
  weights = jnp.ones((B, T))
  loss, _ = lm.cross_entropy(
    lm.Config(chunk_tokens=4),
    families.Scoring(jnp.dtype("float32")),
    jnp.zeros((B, T, D)),
    text["head"],
    text["targets"],
    weights,
  )
  np.testing.assert_allclose(loss / weights.sum(), np.log(V), rtol=1e-6)


def test_the_logits_of_all_tokens_are_never_held():
  """Temporaries grow with the chunk, not with the text (V = 32,000)."""

  def temporaries(n_tokens, chunk):
    config = lm.Config(chunk_tokens=chunk)
    f32, i32 = jnp.float32, jnp.int32
    args = (
      jax.ShapeDtypeStruct((1, n_tokens, 16), f32),
      jax.ShapeDtypeStruct((32_000, 16), f32),
      jax.ShapeDtypeStruct((1, n_tokens), i32),
      jax.ShapeDtypeStruct((1, n_tokens), f32),
    )
    how = families.Scoring(jnp.dtype(f32))
    loss = lambda *a: lm.cross_entropy(config, how, *a)[0]  # noqa: E731
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  chunked, whole = temporaries(2048, 64), temporaries(2048, 2048)
  assert whole > 2048 * 32_000 * 4
  assert chunked < whole / 8


def test_weights_decide_what_counts(text):
  other = dict(text, targets=jnp.where(text["weights"] > 0, text["targets"], 0))
  config, dtype = lm.Config(), jnp.dtype("float32")
  ours = lm.cross_entropy(config, families.Scoring(dtype), **text)[0]
  assert ours == lm.cross_entropy(config, families.Scoring(dtype), **other)[0]


@pytest.mark.parametrize(
  "field", [dict(z_loss=-1.0), dict(label_smoothing=1.0), dict(chunk_tokens=0)]
)
def test_impossible_settings_are_refused(field):
  with pytest.raises(ValueError, match=next(iter(field))):
    dataclasses.replace(lm.Config(), **field)
