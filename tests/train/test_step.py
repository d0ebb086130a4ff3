"""The step: S5, S7, S13, T4, T7, T8. On every mesh: tests/parity/test_meshes.py."""

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases, cells, meshes
from models import families
from sharding import mesh
from train.core import optim, precision, state

FSDP = mesh.Config(data=1, fsdp=8, rules="fsdp")
ALL = mesh.Config(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def alone(tiny, ragged_batch):
  return meshes.run(tiny, ragged_batch)


def test_tokens_travel_and_experts_do_not():
  """Two exchanges forward, and two back; what had no room is counted: S13."""
  model = cells.FAMILIES["mixtral, room"]
  there = mesh.Config(data=2, expert=4, rules="expert")
  found = meshes.run(model, cells.batch(True), there, n_steps=1)
  assert found.metrics["dropped"] > 0
  lines = found.compiled.as_text().splitlines()
  travel = [x for x in lines if " all-to-all(" in x and "/mlp/" in x]
  gathered = [x for x in lines if " all-gather(" in x and "/mlp/mlp" in x]
  assert len(travel) == 4 and not gathered


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5_v1_1", "bart"])
def test_a_mesh_gives_the_update_of_one_device_to_pairs(name):
  """S1: of a text and of what it was written about, packed."""
  model = cases.CASES[name]
  batch = jax.tree.map(lambda x: np.concatenate([x] * 4), cases.batch(model))
  # Rows alike but for their tokens: they are rolled on from row to row.
  rolled = [np.roll(row, i) for i, row in enumerate(batch.tokens)]
  batch = batch.replace(tokens=np.stack(rolled))
  on = mesh.Config(data=1, fsdp=4, tensor=2)
  here, there = (meshes.run(model, batch, m, n_steps=1) for m in (None, on))
  assert not meshes.too_far(meshes.differences(there, here))


def test_adam_on_a_mesh_is_adam(tiny, ragged_batch):
  adam = optim.CONFIGS["adamw"](lr=1e-3, weight_decay=0.1)
  here, there = (
    jax.device_get(meshes.run(tiny, ragged_batch, on, optimizer=adam).state)
    for on in (None, ALL)
  )
  # A moment of 1e-8 divided by its root: the noise is a part of the rate.
  chex.assert_trees_all_close(here.params, there.params, atol=5e-3 * 1e-3)


def test_initial_parameters_are_the_same_bits_on_every_mesh(tiny):
  transform = optim.make(
    optim.CONFIGS["sgd"](lr=1.0), lambda _: 1.0, families.axes(tiny)
  )
  first = [
    jax.device_get(state.init(tiny, transform, meshes.place(on), 5).params)
    for on in (None, ALL, mesh.Config(data=4, tensor=2, rules="tensor"))
  ]
  chex.assert_trees_all_equal(first[0], first[1], first[2])


@pytest.mark.parametrize(("on", "n_micro"), [(None, 2), (None, 8), (FSDP, 2)])
def test_split_batch_gives_the_update_of_the_whole(
  tiny, ragged_batch, alone, on, n_micro
):
  split = meshes.run(tiny, ragged_batch, on, n_micro=n_micro)
  assert not meshes.too_far(meshes.differences(split, alone))


@pytest.mark.parametrize(
  "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_twice_the_same_run_gives_the_same_bits(tiny, ragged_batch, dtype):
  model = dataclasses.replace(tiny, dtype=dtype, dropout=0.1)
  one, two = (meshes.run(model, ragged_batch, ALL).state for _ in range(2))
  chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(two))


def test_bf16_is_close_to_fp32(tiny, ragged_batch, alone):
  low = meshes.run(dataclasses.replace(tiny, dtype="bfloat16"), ragged_batch)
  np.testing.assert_allclose(
    low.metrics["loss"], alone.metrics["loss"], rtol=1e-2
  )
  kinds = {x.dtype for x in jax.tree.leaves(low.state.params)}
  assert kinds == {jnp.dtype("f4")}


def test_fp16_scales_its_loss_and_is_close_to_fp32(tiny, ragged_batch, alone):
  low = meshes.run(dataclasses.replace(tiny, dtype="float16"), ragged_batch)
  assert float(precision.loss_scale(low.state.opt_state)) > 1
  np.testing.assert_allclose(
    low.metrics["loss"], alone.metrics["loss"], rtol=1e-2
  )


def test_the_step_takes_over_the_memory_of_the_state(tiny, ragged_batch, alone):
  memory = alone.compiled.memory_analysis()
  n_bytes = sum(x.nbytes for x in jax.tree.leaves(alone.state))
  assert memory.alias_size_in_bytes >= n_bytes


def test_another_shape_is_refused_not_compiled_again(tiny, ragged_batch, alone):
  short = jax.tree.map(lambda x: jnp.asarray(x[:4]), ragged_batch)
  with pytest.raises(TypeError, match="compiled with"):
    alone.compiled(alone.state, short)


def test_one_step_of_sgd_by_hand(tiny, ragged_batch):
  """The golden step: mean gradient of the plain loss, times the rate."""
  config = optim.CONFIGS["sgd"](lr=0.1, clip=None)
  after = meshes.run(tiny, ragged_batch, n_steps=1, optimizer=config)
  before = cases.params(tiny)
  b = jax.tree.map(jnp.asarray, ragged_batch)

  def mean_loss(params):
    hidden, _ = families.build(tiny).apply(
      {"params": params}, b.tokens, b.positions, b.segment_ids
    )
    logits = families.logits(tiny, params, hidden)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, b.targets)
    z = jax.nn.logsumexp(logits, -1)
    total = ((nll + 1e-3 * z**2) * b.weights).sum()
    return total / b.weights.sum(), (nll * b.weights).sum() / b.weights.sum()

  gradient = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
  (_, nll), grads = gradient(before)
  np.testing.assert_allclose(after.metrics["loss"], nll, rtol=1e-6)
  np.testing.assert_allclose(
    after.metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5
  )
  chex.assert_trees_all_close(
    after.state.params,
    jax.tree.map(lambda p, g: p - 0.1 * g, before, grads),
    rtol=1e-5,
    atol=1e-7,
  )


def test_dropout_differs_between_steps_and_parts(tiny, ragged_batch):
  """And between devices: N13."""
  model = dataclasses.replace(tiny, dropout=0.5)
  frozen = optim.CONFIGS["sgd"](lr=1e-12, clip=None)

  def run(n_steps, n_micro, on=None):
    found = meshes.run(
      model, ragged_batch, on, n_steps=n_steps, n_micro=n_micro,
      optimizer=frozen,
    )  # fmt: skip
    return found.metrics["loss"]

  alone = run(1, 1)
  assert len({alone, run(2, 1), run(1, 2)}) == 3
  # Devices draw their parts of the masks of one.
  np.testing.assert_allclose(run(1, 1, FSDP), alone, rtol=1e-6)
