"""The step on every mesh, split in every way: S1, S2, S5, S7, S9, T4, T7, T8."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import deepseek, families, mixtral
from models.layers import latent, moe
from sharding import context, mesh, report, rules
from train.core import loop, optim, precision, schedule, state, step
from train.objectives import lm

LAYOUTS = {
  "one device": ("dp", {}),
  "dp": ("dp", dict(data=8)),
  "zero1": ("zero1", dict(data=2, fsdp=4)),
  "zero2": ("zero2", dict(data=2, fsdp=4)),
  "zero3": ("zero3", dict(data=2, fsdp=4)),
  "fsdp": ("fsdp", dict(data=1, fsdp=8)),
  "tensor": ("tensor", dict(data=4, tensor=2)),
  "fsdp x tensor": ("fsdp_tensor", dict(data=1, fsdp=4, tensor=2)),
  "data x fsdp x tensor": ("fsdp_tensor", dict(data=2, fsdp=2, tensor=2)),
  "replica x fsdp": ("fsdp", dict(replica=2, data=2, fsdp=2)),
}


def _layout(name: str, layouts=LAYOUTS) -> rules.Layout:
  table, sizes, *settings = layouts[name]
  devices = jax.devices() if sizes else jax.devices()[:1]
  made = mesh.make(mesh.Config(**sizes), devices)
  return rules.make(made, table, *settings)


@functools.cache
def _initial(model, seed):
  return jax.device_get(families.init(model, jax.random.key(seed)))


def _run(
  model,
  batch,
  layout="one device",
  n_steps=2,
  n_micro=1,
  optimizer=None,
  seed=3,
  layouts=LAYOUTS,
):
  """A few steps; returns the state, the metrics and the compiled step."""
  layout = _layout(layout, {**LAYOUTS, **layouts})
  axes = families.axes(model)
  # Linear in the gradient: Adam would blow up the noise of tiny gradients.
  config = optimizer or optim.CONFIGS["sgd"](lr=0.3, momentum=0.9, clip=0.5)
  transform = optim.make(
    config, schedule.make(schedule.CONFIGS["constant"](), 10), axes
  )
  if model.dtype == "float16":
    transform = precision.wrap(transform, precision.Config())
  ahead_weight = 0.3 if getattr(model, "ahead", False) else 0.0
  loss = lm.Config(chunk_tokens=8, z_loss=1e-3, ahead_weight=ahead_weight)
  update = step.make(
    lm.make(loss, model),
    transform,
    n_micro=n_micro,
    seed=seed,
    axes=axes,
    grad_shardings=layout.shardings(axes, families.abstract(model), "grads"),
  )
  # Moved there, not made there: compiling `init` would take half the time.
  first = state.start(_initial(model, seed), transform)
  first = jax.device_put(
    jax.device_get(first), state.shardings(model, transform, layout)
  )
  batch = jax.tree.map(
    lambda x: x[:, context.columns(layout, x.shape[1])], batch
  )
  batch = jax.device_put(batch, layout.batch)
  compiled, _ = loop.compile_step(update, first, batch, layout)
  last = first
  for _ in range(n_steps):
    last, metrics, _ = compiled(last, batch)
  wanted = state.abstract(model, transform, layout)
  report.check(last, jax.tree.map(lambda x: x.sharding, wanted))
  return last, loop.divide([metrics]), compiled


@pytest.fixture(scope="module")
def alone(tiny, ragged_batch):
  return _run(tiny, ragged_batch)


def _compare(there, metrics, here, expected, *more):
  """Loss, the norm that the clipping divides by, and the updated parameters."""
  for name in ("loss", "grad_norm", *more):
    np.testing.assert_allclose(
      metrics[name], expected[name], rtol=1e-5, err_msg=name
    )
  chex.assert_trees_all_close(
    jax.device_get(there.params),
    jax.device_get(here.params),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("layout", [n for n in LAYOUTS if n != "one device"])
def test_every_mesh_gives_the_update_of_one_device(
  tiny, ragged_batch, alone, layout
):
  there, metrics, _ = _run(tiny, ragged_batch, layout)
  here, expected, _ = alone
  # Loss, and the norm that the clipping divides by: global, not per shard.
  _compare(there, metrics, here, expected)


ZIGZAG = "auto", "ring", "zigzag"
CONTEXT_LAYOUTS = {
  "ring x fsdp": ("fsdp", dict(data=1, fsdp=2, context=4), *ZIGZAG),
  "gather x tensor": (
    "fsdp_tensor",
    dict(data=1, fsdp=2, context=2, tensor=2),
    *("chunked", "gather", "zigzag"),
  ),
  "ulysses x zero2": (
    "zero2",
    dict(data=2, fsdp=2, context=2),
    *("auto", "ulysses"),
  ),
}


@pytest.fixture(scope="module")
def sliding(tiny, ragged_batch):
  """Windows of 5 in every second layer, on one device."""
  model = dataclasses.replace(tiny, window=5, pattern=("full", "sliding"))
  return model, _run(model, ragged_batch)


@pytest.mark.parametrize("layout", CONTEXT_LAYOUTS)
def test_split_rows_give_the_update_of_one_device(
  sliding, ragged_batch, layout
):
  """Packed rows, windows, grouped heads, in order and in zigzag: S12."""
  model, (here, expected, _) = sliding
  there, metrics, _ = _run(model, ragged_batch, layout, layouts=CONTEXT_LAYOUTS)
  _compare(there, metrics, here, expected)


EXPERT_LAYOUTS = {
  "dp": ("dp", dict(data=8)),
  "fsdp x tensor": ("fsdp_tensor", dict(data=1, fsdp=4, tensor=2)),
  "expert": ("expert", dict(data=2, expert=4)),
  "fsdp x expert": ("expert", dict(data=1, fsdp=2, expert=4)),
  "expert x tensor": ("expert_tensor", dict(data=1, expert=4, tensor=2)),
  "expert x context": ("expert", dict(data=1, expert=4, context=2), *ZIGZAG),
  "tensor x context": (
    "expert_tensor",
    dict(data=1, expert=2, context=2, tensor=2),
  ),
}


@pytest.fixture(scope="module")
def experts(request, tiny, ragged_batch):
  """A model of experts, with and without a capacity, on one device."""
  layers = moe.Config(
    n_experts=4, n_active=2, capacity_factor=request.param,
    balance_weight=0.02, z_weight=1e-3,
  )  # fmt: skip
  model = mixtral.Config(**{**vars(tiny), "d_ff": 32}, experts=layers)
  return model, _run(model, ragged_batch)


# With a capacity each part of a split row has a room of its own, and so other
# tokens are dropped: tests/models/test_moe.py splits rows where all have room.
EXPERT_CASES = [
  pytest.param(room, layout, id=f"{'room' if room else 'dropless'}-{layout}")
  for room in (None, 1.25)
  for layout in EXPERT_LAYOUTS
  if room is None or "context" not in layout
]


@pytest.mark.parametrize(
  ("experts", "layout"), EXPERT_CASES, indirect=["experts"]
)
def test_every_mesh_gives_the_update_of_one_device_to_experts(
  experts, ragged_batch, layout
):
  """Loss, gradient norm, update, and the count of dropped tokens: S1, S13."""
  model, (here, expected, _) = experts
  there, metrics, compiled = _run(
    model, ragged_batch, layout, layouts=EXPERT_LAYOUTS
  )
  _compare(there, metrics, here, expected, "balance", "dropped")
  assert (expected["dropped"] > 0) == (model.experts.capacity_factor == 1.25)
  # Tokens travel, experts do not: two exchanges forward, and two back.
  lines = compiled.as_text().splitlines()
  travel = [x for x in lines if " all-to-all(" in x and "/mlp/" in x]
  gathered = [x for x in lines if " all-gather(" in x and "/mlp/mlp" in x]
  if layout.startswith("expert") and model.experts.capacity_factor:
    assert len(travel) == 4 and not gathered


@pytest.fixture(scope="module")
def deep(tiny, ragged_batch):
  """Latent attention, a dense layer, biased experts, the token after next."""
  model = deepseek.Config(
    vocab_size=tiny.vocab_size,
    d_model=32,
    n_layers=3,
    n_heads=4,
    d_ff=64,
    d_expert=16,
    experts=moe.Config(
      n_experts=8, n_active=2, n_shared=1, scores="sigmoid", biased=True,
      n_groups=4, n_active_groups=2, n_ranking=2, capacity_factor=1.25,
    ),
    attention=latent.Config(
      q_rank=16, kv_rank=8, d_plain=8, d_rotary=4, d_value=8
    ),
    ahead=True,
    dtype="float32",
  )  # fmt: skip
  return model, _run(model, ragged_batch)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("layout", "n_micro"),
  [("fsdp x tensor", 1), ("fsdp x expert", 2), ("expert x tensor", 1)],
)
def test_every_mesh_gives_the_update_of_one_device_to_deepseek(
  deep, ragged_batch, layout, n_micro
):
  """Biases too: the load is that of the whole batch, however it is split."""
  model, (here, expected, _) = deep
  there, metrics, _ = _run(
    model, ragged_batch, layout, n_micro=n_micro, layouts=EXPERT_LAYOUTS
  )
  assert expected["dropped"] > 0
  for name in ("loss", "ahead_loss", "grad_norm", "dropped"):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
  there, here = jax.device_get((there.params, here.params))
  bias = here["stack"]["layers"]["block_0"]["mlp"]["bias"]
  assert set(np.unique(np.abs(bias))) > {np.float32(0.002)}
  chex.assert_trees_all_close(there, here, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "name", ["t5_v1_1", pytest.param("bart", marks=pytest.mark.slow)]
)
def test_a_mesh_gives_the_update_of_one_device_to_pairs(name):
  """S1: of a text and of what it was written about, packed."""
  model = cases.CASES[name]
  batch = jax.tree.map(lambda x: np.concatenate([x] * 4), cases.batch(model))
  # Rows alike but for their tokens: they are rolled on from row to row.
  rolled = [np.roll(row, i) for i, row in enumerate(batch.tokens)]
  batch = batch.replace(tokens=np.stack(rolled))
  here, expected, _ = _run(model, batch, n_steps=1)
  there, metrics, _ = _run(model, batch, "fsdp x tensor", n_steps=1)
  _compare(there, metrics, here, expected)


def test_adam_on_a_mesh_is_adam(tiny, ragged_batch):
  adam = optim.CONFIGS["adamw"](lr=1e-3, weight_decay=0.1)
  run = lambda layout: jax.device_get(  # noqa: E731
    _run(tiny, ragged_batch, layout, optimizer=adam)[0]
  )
  here, there = run("one device"), run("data x fsdp x tensor")
  # A moment of 1e-8 divided by its root: the noise is a part of the rate.
  chex.assert_trees_all_close(here.params, there.params, atol=5e-3 * 1e-3)


def test_initial_parameters_are_the_same_bits_on_every_mesh(tiny):
  transform = optim.make(
    optim.CONFIGS["sgd"](lr=1.0), lambda _: 1.0, families.axes(tiny)
  )
  first = [
    jax.device_get(state.init(tiny, transform, _layout(name), 5).params)
    for name in ("one device", "data x fsdp x tensor", "tensor")
  ]
  chex.assert_trees_all_equal(first[0], first[1], first[2])


@pytest.mark.parametrize("n_micro", [2, 8])
@pytest.mark.parametrize("layout", ["one device", "fsdp"])
def test_split_batch_gives_the_update_of_the_whole(
  tiny, ragged_batch, alone, n_micro, layout
):
  if layout == "fsdp":
    n_micro //= 2  # two rows a device
    n_micro = max(n_micro, 2) if n_micro < 4 else 2
  split, metrics, _ = _run(tiny, ragged_batch, layout, n_micro=n_micro)
  whole, expected, _ = alone
  np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
  chex.assert_trees_all_close(
    jax.device_get(split.params),
    jax.device_get(whole.params),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_twice_the_same_run_gives_the_same_bits(tiny, ragged_batch, dtype):
  model = dataclasses.replace(tiny, dtype=dtype, dropout=0.1)
  one, *_ = _run(model, ragged_batch, "fsdp x tensor")
  two, *_ = _run(model, ragged_batch, "fsdp x tensor")
  chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(two))


def test_bf16_is_close_to_fp32(tiny, ragged_batch, alone):
  low, metrics, _ = _run(
    dataclasses.replace(tiny, dtype="bfloat16"), ragged_batch
  )
  np.testing.assert_allclose(metrics["loss"], alone[1]["loss"], rtol=1e-2)
  assert {x.dtype for x in jax.tree.leaves(low.params)} == {jnp.dtype("f4")}


def test_fp16_scales_its_loss_and_is_close_to_fp32(tiny, ragged_batch, alone):
  low, metrics, _ = _run(
    dataclasses.replace(tiny, dtype="float16"), ragged_batch
  )
  assert float(precision.loss_scale(low.opt_state)) > 1
  np.testing.assert_allclose(metrics["loss"], alone[1]["loss"], rtol=1e-2)


def test_the_step_takes_over_the_memory_of_the_state(tiny, ragged_batch, alone):
  last, _, compiled = alone
  memory = compiled.memory_analysis()
  n_bytes = sum(x.nbytes for x in jax.tree.leaves(last))
  assert memory.alias_size_in_bytes >= n_bytes


def test_another_shape_is_refused_not_compiled_again(tiny, ragged_batch, alone):
  last, _, compiled = alone
  short = jax.tree.map(lambda x: jnp.asarray(x[:4]), ragged_batch)
  with pytest.raises(TypeError, match="compiled with"):
    compiled(last, short)


def test_one_step_of_sgd_by_hand(tiny, ragged_batch):
  """The golden step: mean gradient of the plain loss, times the rate."""
  config = optim.CONFIGS["sgd"](lr=0.1, clip=None)
  after, metrics, _ = _run(tiny, ragged_batch, n_steps=1, optimizer=config)
  before = families.init(tiny, jax.random.key(3))
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
  np.testing.assert_allclose(metrics["loss"], nll, rtol=1e-6)
  np.testing.assert_allclose(
    metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5
  )
  chex.assert_trees_all_close(
    after.params,
    jax.tree.map(lambda p, g: p - 0.1 * g, before, grads),
    rtol=1e-5,
    atol=1e-7,
  )


def test_dropout_differs_between_steps_and_parts(tiny, ragged_batch):
  model = dataclasses.replace(tiny, dropout=0.5)
  frozen = optim.CONFIGS["sgd"](lr=1e-12, clip=None)
  run = lambda n, m: _run(  # noqa: E731
    model, ragged_batch, n_steps=n, n_micro=m, optimizer=frozen
  )[1]["loss"]
  assert len({run(1, 1), run(2, 1), run(1, 2)}) == 3
