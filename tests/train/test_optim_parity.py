"""Step for step against torch.optim 2.13."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.core import optim, schedule

pytestmark = pytest.mark.parity
AXES = {"w": ("embed", "mlp")}
SHAPE = (6, 9)


@pytest.fixture(scope="module")
def torch():
  return pytest.importorskip("torch")


def arrays(n):
  rng = np.random.default_rng(0)
  return [rng.standard_normal(SHAPE).astype(np.float32) for _ in range(n)]


def our_walk(config, n_steps):
  start, *grads = arrays(n_steps + 1)
  optimizer = optim.make(
    config, schedule.make(schedule.Constant(), n_steps), AXES
  )
  params = {"w": jnp.asarray(start)}
  state, walk = optimizer.init(params), []
  update = jax.jit(optimizer.update)
  for grad in grads:
    updates, state = update({"w": jnp.asarray(grad)}, state, params)
    params = optax.apply_updates(params, updates)
    walk.append(params["w"])
  return walk


def torch_walk(torch, make_optimizer, n_steps, clip=None):
  start, *grads = arrays(n_steps + 1)
  w = torch.nn.Parameter(torch.tensor(start))
  optimizer, walk = make_optimizer([w]), []
  for grad in grads:
    w.grad = torch.tensor(grad)
    if clip:
      torch.nn.utils.clip_grad_norm_([w], clip)
    optimizer.step()
    walk.append(w.detach().numpy().copy())
  return walk


def assert_same_walk(ours, theirs, atol):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(torch, nesterov):
  ours = optim.SGD(lr=0.05, momentum=0.9, nesterov=nesterov, clip=None)
  theirs = torch_walk(
    torch,
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=nesterov),
    10,
  )
  assert_same_walk(our_walk(ours, 10), theirs, atol=1e-6)


def test_sgd_with_decay(torch):
  """Coupled and decoupled decay are one where there is no momentum."""
  ours = optim.SGD(lr=0.05, weight_decay=0.1, clip=None)
  theirs = torch_walk(
    torch, lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1), 10
  )
  assert_same_walk(our_walk(ours, 10), theirs, atol=1e-6)


def test_adamw_with_clipping(torch):
  ours = optim.AdamW(lr=0.01, b2=0.99, weight_decay=0.2, clip=1.0)
  theirs = torch_walk(
    torch,
    lambda p: torch.optim.AdamW(
      p, lr=0.01, betas=(0.9, 0.99), weight_decay=0.2
    ),
    10,
    clip=1.0,
  )
  assert_same_walk(our_walk(ours, 10), theirs, atol=1e-6)


def test_adafactor(torch):
  ours = optim.Adafactor(lr=0.01, weight_decay=0.1, clip=None)
  theirs = torch_walk(
    torch,
    lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
    10,
  )
  assert_same_walk(our_walk(ours, 10), theirs, atol=2e-6)


def test_muon(torch):
  """torch iterates in bf16: 2 % of a step of rms 0.2 * lr.

  Without Nesterov, whose first steps optax corrects for bias and torch does
  not: the direction of plain momentum does not depend on the correction.
  """
  lr, n_steps = 0.01, 10
  ours = optim.Muon(lr=lr, nesterov=False, weight_decay=0.1, clip=None)
  theirs = torch_walk(
    torch,
    lambda p: torch.optim.Muon(
      p,
      lr=lr,
      weight_decay=0.1,
      nesterov=False,
      adjust_lr_fn="match_rms_adamw",
    ),
    n_steps,
  )
  ours = np.array(our_walk(ours, n_steps))
  theirs = np.array(theirs)
  steps = np.diff(ours, axis=0) - np.diff(theirs, axis=0)
  assert np.sqrt((steps**2).mean()) < 0.02 * 0.2 * lr
  assert_same_walk(ours, theirs, atol=0.05 * 0.2 * lr * n_steps)


def test_lbfgs_ends_where_that_of_torch_ends(torch):
  """The line searches differ, the minimum of Rosenbrock does not."""

  def rosenbrock(x, y):
    return 100 * (y - x**2) ** 2 + (1 - x) ** 2

  point = torch.nn.Parameter(torch.tensor([-1.2, 1.0]))
  theirs = torch.optim.LBFGS(
    [point], max_iter=50, line_search_fn="strong_wolfe"
  )

  def closure():
    theirs.zero_grad()
    loss = rosenbrock(*point)
    loss.backward()
    return loss

  theirs.step(closure)

  ours = optim.make(
    optim.LBFGS(), schedule.make(schedule.Constant(), 50), {"x": ("norm",)}
  )
  params = {"x": jnp.array([-1.2, 1.0])}
  state = ours.init(params)

  def loss(params):
    return rosenbrock(*params["x"])

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = ours.update(
      grads, state, params, value=value, grad=grads, value_fn=loss
    )
    return optax.apply_updates(params, updates), state

  for _ in range(50):
    params, state = step(params, state)
  np.testing.assert_allclose(params["x"], point.detach().numpy(), atol=1e-3)
