"""T5: schedules are exact at 0, at the end of the warm-up and at the last step.

Oracles: closed forms in numpy float64, and torch's tables (parity).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.core import schedule

T, W = 41, 8
ROUNDING = 2.0**-24  # of fp32, just below 1


def table(config, total_steps=T):
  factor = schedule.make(config, total_steps)
  return np.array([float(factor(jnp.int32(i))) for i in range(total_steps)])


def progress(total_steps=T, warmup_steps=W):
  """From 0 at the end of the warm-up to 1 at the last step."""
  i = np.arange(total_steps)
  return np.clip((i - warmup_steps) / (total_steps - 1 - warmup_steps), 0, 1)


def ramp(total_steps=T, warmup_steps=W):
  return np.minimum(1, (np.arange(total_steps) + 1) / (warmup_steps + 1))


SHAPES = {
  "constant": (schedule.Constant(warmup_steps=W), lambda x: np.ones_like(x)),
  "linear": (
    schedule.Linear(warmup_steps=W, floor=0.25),
    lambda x: 1 - 0.75 * x,
  ),
  "cosine": (
    schedule.Cosine(warmup_steps=W, floor=0.1),
    lambda x: 0.1 + 0.9 * (1 + np.cos(math.pi * x)) / 2,
  ),
  "polynomial": (
    schedule.Polynomial(warmup_steps=W, floor=0.05, power=3.0),
    lambda x: 0.05 + 0.95 * (1 - x) ** 3,
  ),
  # 41 steps, of which round(0.25 * 41) = 10 fall; 32 come after the warm-up.
  "wsd": (
    schedule.WSD(warmup_steps=W, floor=0.125, decay_fraction=0.25),
    lambda x: 1 - 0.875 * np.maximum(0, x * 32 - 22) / 10,
  ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_closed_form(name):
  config, fall = SHAPES[name]
  expected = ramp() * fall(progress())
  np.testing.assert_allclose(table(config), expected, atol=3e-7)


@pytest.mark.parametrize("name", SHAPES)
def test_exact_at_first_warmup_end_and_last(name):
  config, _ = SHAPES[name]
  factors = table(config)
  floor = getattr(config, "floor", 1.0)
  assert factors[0] == pytest.approx(1 / (W + 1), abs=ROUNDING)
  assert factors[W - 1] == pytest.approx(W / (W + 1), abs=ROUNDING)
  assert factors[W] == 1.0
  assert factors[-1] == np.float32(floor)
  after = schedule.make(config, T)(jnp.int32(10 * T))
  assert after == np.float32(floor)


@pytest.mark.parametrize("name", SHAPES)
def test_without_warmup_the_first_step_is_the_peak(name):
  config = schedule.CONFIGS[name]()
  factors = table(config)
  assert factors[0] == 1.0
  assert (np.diff(factors) <= 0).all()


def test_one_cycle_closed_form():
  config = schedule.OneCycle(rise_fraction=0.25, start=0.1, floor=0.001)
  factors = table(config, 40)
  i = np.arange(40)
  half = np.pi * np.where(i < 9, i / 9, (i - 9) / 30)
  expected = np.where(
    i < 9,
    1 - 0.9 * (1 + np.cos(half)) / 2,
    0.001 + 0.999 * (1 + np.cos(half)) / 2,
  )
  np.testing.assert_allclose(factors, expected, atol=3e-7)
  assert factors[0] == pytest.approx(0.1, abs=ROUNDING)
  assert factors[9] == 1.0
  assert factors[-1] == np.float32(0.001)


def test_wsd_falls_for_its_share_of_the_run():
  factors = table(schedule.WSD(warmup_steps=10, decay_fraction=0.2), 100)
  assert (factors == 1.0).sum() == 100 - 10 - 20
  np.testing.assert_allclose(np.diff(factors)[-20:], -1 / 20, atol=1e-6)


@pytest.mark.parametrize("name", schedule.CONFIGS)
@pytest.mark.parametrize("total_steps", [1, 2, 3, 1000])
def test_stays_in_range_for_any_length(name, total_steps):
  factors = table(schedule.CONFIGS[name](), total_steps)
  assert np.isfinite(factors).all()
  assert (0 <= factors).all()
  assert factors.max() == 1.0


def test_the_same_inside_jit():
  factor = schedule.make(schedule.Cosine(warmup_steps=W), T)
  steps = jnp.arange(T)
  expected = table(schedule.Cosine(warmup_steps=W))
  np.testing.assert_allclose(
    jax.jit(jax.vmap(factor))(steps), expected, atol=2 * ROUNDING
  )


def test_far_steps_of_long_runs_keep_their_precision():
  config = schedule.Linear(warmup_steps=2_000)
  factor = schedule.make(config, 1_000_001)
  left = (1_000_000 - 999_000) / (1_000_000 - 2_000)
  assert float(factor(jnp.int32(999_000))) == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize(
  ("name", "fields", "words"),
  [
    ("linear", {"warmup_steps": -1}, "warmup_steps=-1"),
    ("cosine", {"floor": 1.5}, "floor=1.5"),
    ("polynomial", {"power": 0.0}, "power=0.0"),
    ("wsd", {"decay_fraction": -0.1}, "decay_fraction=-0.1"),
    ("one_cycle", {"start": 2.0}, "start=2.0"),
  ],
)
def test_impossible_values_are_named(name, fields, words):
  with pytest.raises(ValueError, match=words):
    schedule.CONFIGS[name](**fields)


def test_a_warmup_as_long_as_the_run_is_an_error():
  config = schedule.Cosine(warmup_steps=30)
  with pytest.raises(ValueError, match="at most 29"):
    schedule.make(config, 30)
  assert schedule.make(config, 31)(30) == 1.0


def torch_table(make_scheduler, total_steps):
  torch = pytest.importorskip("torch")
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
  scheduler = make_scheduler(torch.optim.lr_scheduler, optimizer)
  factors = []
  for _ in range(total_steps):
    factors.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
  return np.array(factors)


# torch's T_max and total_iters count up to the step that gets the floor, which
# is T - 1 here.
@pytest.mark.parity
@pytest.mark.parametrize(
  ("config", "make_scheduler"),
  [
    (
      schedule.OneCycle(),
      lambda lr, o: lr.OneCycleLR(o, max_lr=1.0, total_steps=50),
    ),
    (
      schedule.Cosine(floor=0.1),
      lambda lr, o: lr.CosineAnnealingLR(o, T_max=49, eta_min=0.1),
    ),
    (
      schedule.Polynomial(power=2.5),
      lambda lr, o: lr.PolynomialLR(o, total_iters=49, power=2.5),
    ),
    (
      schedule.Linear(floor=0.2),
      lambda lr, o: lr.LinearLR(
        o, start_factor=1.0, end_factor=0.2, total_iters=49
      ),
    ),
    (
      schedule.Constant(warmup_steps=9),
      lambda lr, o: lr.LinearLR(o, start_factor=0.1, total_iters=9),
    ),
  ],
)
def test_tables_of_torch(config, make_scheduler):
  expected = torch_table(make_scheduler, 50)
  np.testing.assert_allclose(table(config, 50), expected, atol=1e-6)
