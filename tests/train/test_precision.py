"""Loss scaling: an overflow skips the step and halves the scale, exactly."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.core import optim, precision, schedule

AXES = {"w": ("embed", "mlp"), "b": ("mlp",)}


def params():
  return {"w": jnp.ones((4, 8)), "b": jnp.zeros(8)}


def make(**fields):
  factors = schedule.make(schedule.Linear(), 100)
  inner = optim.make(optim.AdamW(lr=0.1), factors, AXES)
  return inner, precision.wrap(inner, precision.Config(**fields))


def grads(value=0.5):
  return jax.tree.map(lambda p: jnp.full_like(p, value), params())


@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, jnp.nan])
def test_an_overflow_skips_the_step_and_halves_the_scale(bad):
  _, optimizer = make(init=1024.0)
  _, state = optimizer.update(grads(), optimizer.init(params()), params())
  poisoned = grads()
  poisoned["w"] = poisoned["w"].at[2, 3].set(bad)
  updates, after = optimizer.update(poisoned, state, params())
  chex.assert_trees_all_equal(updates, grads(0.0))
  chex.assert_trees_all_equal(after.inner, state.inner)
  assert after.scale == 512.0
  assert after.n_good == 0
  reported = precision.metrics(after)
  assert [float(total) for total, _ in reported.values()] == [512.0, 1.0]


def test_without_overflow_it_is_the_optimizer_itself():
  inner, optimizer = make()
  plain, wrapped = inner.init(params()), optimizer.init(params())
  for value in (0.5, -0.25, 1.0):
    expected, plain = inner.update(grads(value), plain, params())
    updates, wrapped = optimizer.update(grads(value), wrapped, params())
    chex.assert_trees_all_equal(updates, expected)
  chex.assert_trees_all_equal(wrapped.inner, plain)
  assert float(precision.metrics(wrapped)["skipped"][0]) == 0.0


def test_the_scale_doubles_after_growth_steps_without_overflow():
  _, optimizer = make(init=8.0, growth_steps=3)
  state, scales = optimizer.init(params()), []
  values = [1.0, 1.0, np.nan, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
  for value in values:
    _, state = optimizer.update(grads(value), state, params())
    scales.append(float(state.scale))
  assert scales == [8, 8, 4, 4, 4, 8, 8, 8, 16, 16]


def test_the_scale_stays_within_its_bounds():
  for init, value in ((precision.SMALLEST, np.nan), (precision.LARGEST, 1.0)):
    _, optimizer = make(init=init, growth_steps=1)
    _, state = optimizer.update(
      grads(value), optimizer.init(params()), params()
    )
    assert state.scale == init


def test_the_schedule_does_not_count_skipped_steps():
  _, optimizer = make()
  state = optimizer.init(params())
  for value in (1.0, np.nan, np.nan, 1.0):
    _, state = optimizer.update(grads(value), state, params())
  counts = optax.tree_utils.tree_get_all_with_path(state, "count")
  assert {int(count) for _, count in counts} == {2}


def test_fp16_trains_only_with_a_scale():
  """Gradients of 1e-9 are zero in fp16; scaled by 2**16 they are not."""
  goal = jnp.linspace(0.5, 1.5, 8)

  def loss(params):
    error = (params["b"] - goal).astype(jnp.float16)
    return jnp.sum(error * jnp.float16(1e-5)).astype(jnp.float32) * 1e-4

  def scaled_grads(scale):
    grads = jax.grad(lambda p: scale * loss(p))(params())
    return jax.tree.map(lambda g: g / scale, grads)

  _, optimizer = make(init=2.0**16)
  scale = precision.loss_scale(optimizer.init(params()))
  np.testing.assert_array_equal(scaled_grads(1.0)["b"], 0)
  np.testing.assert_allclose(scaled_grads(scale)["b"], 1e-9, rtol=0.01)


def test_an_unwrapped_optimizer_has_scale_one_and_reports_nothing():
  inner, _ = make()
  state = inner.init(params())
  assert precision.loss_scale(state) == 1.0
  assert precision.metrics(state) == {}


@pytest.mark.parametrize("fields", [{"init": 0.0}, {"growth_steps": 0}])
def test_impossible_values_are_named(fields):
  (name,) = fields
  with pytest.raises(ValueError, match=f"{name}="):
    precision.Config(**fields)
