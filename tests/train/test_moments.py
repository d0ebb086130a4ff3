"""Moments in fewer bits: how far off they are, what they weigh, where they lie."""

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from sharding import mesh, rules
from train.core import moments, optim

AXES = {
  "table": ("vocab", "embed"),
  "up": ("layers", "embed", "mlp"),
  "q": ("embed", "heads", "head"),
  "scale": ("norm",),
}
SHAPES = {
  "table": (64, 256), "up": (2, 64, 384), "q": (64, 4, 8), "scale": (64,)
}  # fmt: skip


def draw(seed, spread=3.0):
  """Numbers over many powers of ten, as gradients are."""
  rng = np.random.default_rng(seed)

  def one(shape):
    sizes = np.exp(spread * rng.normal(size=shape))
    return jnp.float32(rng.normal(size=shape) * sizes)

  return {name: one(shape) for name, shape in SHAPES.items()}


def adam(kind, **settings):
  config = optim.AdamW(
    lr=0.1, weight_decay=0.0, clip=None, moments=kind, **settings
  )
  return optim.make(config, lambda _: 1.0, AXES)


@pytest.mark.parametrize(("n", "power"), [(127, 3), (255, 6)])
def test_a_number_becomes_one_of_its_two_neighbours(n, power):
  """Never further than the part it lies in, and right in the mean."""
  x = draw(0)["table"] ** (1 if power == 3 else 2)
  scale = np.abs(x).reshape(64, 2, 128).max(-1).repeat(128, -1)
  share = np.abs(x) / scale
  low = np.minimum(np.floor(n * share ** (1 / power) + 1e-4), n - 1)
  wide = ((low + 1) / n) ** power - (np.maximum(low - 1, 0) / n) ** power
  found = [
    moments.decode(*moments.quantize(x, jax.random.key(i), n, power), n, power)
    for i in range(32)
  ]
  errors = np.abs(np.stack(found) - x[None]) / scale
  assert np.all(errors <= wide[None] + 1e-6)
  assert errors.max() < 0.025
  assert np.abs(np.mean(found, 0) - x).mean() < 0.25 * errors.mean() * (
    np.mean(scale)
  )


def test_bfloat16_is_right_in_the_mean():
  """Where nearest rounding would never move: 1 + 2^-12 between 1 and 1 + 2^-7."""
  x = jnp.full((4096, 16), 1 + 2.0**-12)
  found = moments.to_bf16(x, jax.random.key(0)).astype(jnp.float32)
  assert set(np.unique(found)) == {np.float32(1.0), np.float32(1.0078125)}
  np.testing.assert_allclose(found.mean() - 1, 2.0**-12, rtol=0.2)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_the_first_step_is_adams_and_the_others_are_near(kind):
  """Equal where nothing was kept yet. Then, of ordinary gradients, off by 2 %
  of a step in the mean, and never longer than Adam's can be.
  """
  ours, theirs = adam(kind), adam("float32")
  params = draw(9)
  state, their_state = ours.init(params), theirs.init(params)
  update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
  for step in range(6):
    grads = draw(step, spread=0.5)
    updates, state = update(grads, state, params)
    expected, their_state = their_update(grads, their_state, params)
    for name in AXES:
      error = np.abs(updates[name] - expected[name]) / 0.1
      if step == 0 or name == "scale":
        assert error.max() < 1e-5
      assert error.mean() < 0.02
      assert np.abs(updates[name]).max() < 0.1 * 1.2


def test_a_second_moment_is_never_lost():
  """A gradient of 1e-9 beside one of 1 keeps a part of its own, and makes no
  step longer than Adam's can be: 1.17 lr for these b1 and b2.
  """
  optimizer = adam("int8")
  params = draw(0)
  state = optimizer.init(params)
  grads = draw(1, spread=0.0)
  grads["table"] = grads["table"].at[:, 1:].multiply(1e-9)
  update = jax.jit(optimizer.update)
  for _ in range(5):
    updates, state = update(grads, state, params)
    assert np.abs(updates["table"]).max() <= 0.1 * 1.17
  assert _moments(state).second["table"].min() >= 1


@pytest.mark.parametrize(
  ("kind", "limit"), [("bfloat16", 0.01), ("int8", 0.03)]
)
def test_200_steps_end_near_the_loss_of_fp32(kind, limit):
  """A net of two layers on noisy data; within 1 % and 3 %."""
  axes = {"up": ("embed", "mlp"), "down": ("mlp", "embed")}
  key = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(key[0], (256, 32))
  y = jnp.sin(x @ jax.random.normal(key[1], (32, 32)))
  start = {
    "up": 0.2 * jax.random.normal(key[2], (32, 64)),
    "down": 0.2 * jax.random.normal(key[3], (64, 32)),
  }

  def loss(params):
    return jnp.square(jax.nn.silu(x @ params["up"]) @ params["down"] - y).mean()

  def train(kind):
    config = optim.AdamW(lr=0.01, moments=kind)
    optimizer = optim.make(config, lambda _: 1.0, axes)

    def step(carry, _):
      params, state = carry
      value, grads = jax.value_and_grad(loss)(params)
      updates, state = optimizer.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), value

    run = jax.jit(
      lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=200)
    )
    (params, _), losses = run(start)
    return losses[0], loss(params)

  (first, plain), (_, low) = train("float32"), train(kind)
  assert plain < 0.5 * first
  assert abs(low / plain - 1) < limit


def test_bytes_of_the_state_are_counted():
  """Of a matrix 2 bytes an entry and 8 for a block of 128; of vectors 8."""
  params = draw(0)
  assert moments.whole(AXES, params) == ["q"]
  n_large = {name: np.prod(shape) for name, shape in SHAPES.items()}
  n_scale, n_q = n_large.pop("scale"), n_large.pop("q")
  n = sum(n_large.values())
  for kind, expected in (
    ("float32", 8 * (n + n_q + n_scale)),
    ("bfloat16", 4 * (n + n_q) + 8 * n_scale),
    ("int8", n * (2 + 8 / 128) + 8 * (n_q + n_scale)),
  ):
    state = jax.eval_shape(adam(kind).init, params)
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert held - expected <= 16  # counts of steps


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_mesh_keeps_the_moments_of_one_device_and_splits_them(kind):
  """To the bit in bfloat16. Of 8 bits a root may round to another part where
  the compiler fuses otherwise: one part off, one of 10,000 at most.
  """
  layout = rules.make(
    mesh.make(mesh.Config(data=1, fsdp=4, tensor=2)), "fsdp_tensor"
  )
  optimizer, params = adam(kind), draw(0)
  placed = layout.shardings(AXES, params, "state")
  where = optim.shardings(optimizer, params, placed)
  update = jax.jit(optimizer.update, out_shardings=(placed, where))
  here, there = (
    optimizer.init(params),
    jax.device_put(optimizer.init(params), where),
  )
  for seed in range(2):
    grads = draw(seed)
    steps, here = jax.jit(optimizer.update)(grads, here, params)
    split, there = update(
      jax.device_put(grads, placed), there, jax.device_put(params, placed)
    )
    for name, step in steps.items():
      off = np.abs(jax.device_get(split[name]) - step) > 1e-6
      assert off.mean() <= (1e-4 if kind == "int8" else 0)
  kept = _moments(there)
  for ours, theirs in zip(
    jax.tree.leaves(kept), jax.tree.leaves(_moments(here)), strict=True
  ):
    ours, theirs = (np.float64(jax.device_get(x)) for x in (ours, theirs))
    if kind == "int8" and np.any(ours != theirs):
      assert (ours != theirs).mean() <= 1e-4
      np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1)
    else:
      np.testing.assert_array_equal(ours, theirs)
  assert kept.first["up"].sharding.shard_shape((2, 64, 384)) == (2, 16, 192)
  assert kept.first["up"].dtype == kind
  if kind == "int8":
    # Three blocks over two shards: whole; two over one of four: split by rows.
    assert kept.first_scale["up"].sharding.shard_shape((2, 64, 3)) == (2, 16, 3)
    shape = kept.first_scale["table"].sharding.shard_shape((64, 2))
    assert shape == (32, 2)


def _moments(state):
  def is_ours(node):
    return isinstance(node, moments.Moments)

  return next(filter(is_ours, jax.tree.leaves(state, is_leaf=is_ours)))
