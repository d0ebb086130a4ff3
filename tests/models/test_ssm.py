"""Mamba-2's states against the recurrence that defines them, in float64."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import flops, mamba2
from models.layers import ssm
from sharding import mesh, rules

B, T, N, H, G, S = 2, 11, 4, 3, 2, 5
SEGMENTS = np.array([[1] * 4 + [2] * 5 + [0] * 2, [3] * 11], np.int32)


def normal(*shape, seed):
  return np.random.default_rng(seed).normal(size=shape)


def operands():
  return (
    normal(B, T, N, H, seed=0),
    -np.abs(normal(B, T, N, seed=1)),
    normal(B, T, G, S, seed=2),
    normal(B, T, G, S, seed=3),
    SEGMENTS,
    normal(B, N, H, S, seed=4),
  )


def recurrence(x, log_decay, b, c, segments, state):
  """Token by token; a new segment starts from nothing."""
  out, state = np.zeros(x.shape), state.copy()
  for row, t, n in np.ndindex(B, T, N):
    if t and segments[row, t] != segments[row, t - 1]:
      state[row, n] = 0
    group = n // (N // G)
    state[row, n] *= np.exp(log_decay[row, t, n])
    state[row, n] += np.outer(x[row, t, n], b[row, t, group])
    out[row, t, n] = state[row, n] @ c[row, t, group]
  return out, state


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_chunks_are_the_recurrence(chunk):
  *wide, segments, state = operands()
  wide = [jnp.float32(x) for x in (*wide, state)]
  got, last = jax.jit(
    lambda *x: ssm.scan(chunk, *x[:4], jnp.asarray(segments), x[4])
  )(*wide)
  want, expected = recurrence(*operands())
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
  np.testing.assert_allclose(
    last, expected, rtol=0, atol=2e-6 * np.abs(expected).max()
  )


def test_a_convolution_sees_the_last_tokens_of_its_text():
  y, taps = normal(B, T, N, H, seed=5), normal(3, N, H, seed=6)
  got, after = ssm.convolve(
    jnp.float32(y), jnp.float32(taps), jnp.asarray(SEGMENTS), None
  )
  assert after is None
  for row, t in np.ndindex(B, T):
    seen = [
      taps[2 - ago] * y[row, t - ago]
      for ago in range(3)
      if t >= ago and SEGMENTS[row, t - ago] == SEGMENTS[row, t]
    ]
    np.testing.assert_allclose(got[row, t], sum(seen), rtol=0, atol=3e-6)


def test_a_strong_decay_has_finite_gradients():
  """Far above the diagonal of a chunk the exponent is huge."""
  x, log_decay, b, c, segments, state = operands()
  pull = jax.grad(
    lambda x, d: ssm.scan(
      8, x, d, jnp.float32(b), jnp.float32(c), jnp.asarray(segments),
      jnp.float32(state),
    )[0].sum(),
    (0, 1),
  )  # fmt: skip
  for g in pull(jnp.float32(x), jnp.float32(1e3 * log_decay)):
    assert np.isfinite(g).all()


def test_split_rows_are_refused():
  config = cases.CASES["mamba2"]
  layout = rules.make(mesh.make(mesh.Config(data=1, fsdp=2, context=4)), "fsdp")
  weights = cases.params(config)
  with layout.use(), pytest.raises(ValueError, match="mesh.context=4.*states"):
    jax.eval_shape(lambda p: cases.run(config, p), weights)


def test_heads_share_what_groups_have():
  with pytest.raises(ValueError, match="n_heads=4 .* mixer.n_groups=3"):
    dataclasses.replace(
      cases.CASES["mamba2"], mixer=ssm.Config(n_groups=3, d_state=6)
    )


def test_a_state_costs_the_same_at_any_length():
  model = mamba2.PRESETS["mamba2_130m"]
  short, long = (flops.forward_per_token(model, n) for n in (128, 65_536))
  assert short == long > 2 * flops.n_matmul_params(model)
