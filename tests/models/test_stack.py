"""Scan, patterns, rematerialization and dropout change no number they should not.

N8, N9, N13.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import families, gpt, llama
from models.layers import mask, stack

LLAMA = cases.CASES["llama"]
PATTERNED = dataclasses.replace(
  LLAMA, n_layers=4, pattern=("sliding", "full"), window=3
)


@pytest.fixture(scope="module")
def plain():
  return cases.run(LLAMA)


@pytest.mark.parametrize("policy", sorted(set(stack.REMAT) - {"none"}))
def test_remat_changes_no_bit(policy, plain):
  logits, gradients = cases.run(dataclasses.replace(LLAMA, remat=policy))
  np.testing.assert_array_equal(logits, plain[0])
  jax.tree.map(np.testing.assert_array_equal, gradients, plain[1])


SAVED = {
  "full": {},
  "minimal": {"product": 6},  # all but the last, which nothing multiplies
  "save_qkv": {"qkv": 3},
  "save_attended": {"attended": 1},
  "save_widened": {"widened": 2},
}


@pytest.mark.parametrize("policy", SAVED)
def test_a_policy_saves_what_its_name_says(policy, capsys):
  """In bf16 and as bf16: twice the bytes would be twice the memory."""
  config = dataclasses.replace(
    LLAMA, n_layers=1, scanned=False, dtype="bfloat16", remat=policy
  )
  params = jax.tree.map(jnp.asarray, cases.params(config))
  batch = jax.tree.map(jnp.asarray, cases.batch(config))

  def total(params):
    hidden, _ = families.build(config).apply(
      {"params": params}, batch.tokens, batch.positions, batch.segment_ids
    )
    return hidden.astype(jnp.float32).sum()

  jax.ad_checkpoint.print_saved_residuals(total, params)
  named = [line for line in capsys.readouterr().out.splitlines() if "'" in line]
  for name, count in SAVED[policy].items():
    assert sum(f"named '{name}'" in line for line in named) == count
  assert sum(" named '" in line for line in named) == sum(
    SAVED[policy].values()
  )
  assert all("bf16" in line for line in named if " named '" in line)


def test_a_scan_is_its_layers_in_sequence(plain):
  params = cases.params(LLAMA)
  params["stack"] = stack.unstack(params["stack"])
  logits, gradients = cases.run(
    dataclasses.replace(LLAMA, scanned=False), params
  )
  np.testing.assert_allclose(
    plain[0], logits, rtol=0, atol=1e-6 * np.abs(logits).max()
  )
  gradients["stack"] = stack.stack(gradients["stack"], n_pattern=1)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-6 * np.abs(b).max()
    ),
    plain[1],
    gradients,
  )


def test_stack_undoes_unstack():
  params = cases.params(PATTERNED)["stack"]
  layers = stack.unstack(params)
  assert set(layers) == {f"layer_{i}" for i in range(4)}
  jax.tree.map(
    np.testing.assert_array_equal, stack.stack(layers, n_pattern=2), params
  )


def test_a_pattern_is_its_blocks_one_by_one():
  """Sliding, full, sliding, full: each block called by hand."""
  params, batch = (
    jax.tree.map(jnp.asarray, tree)
    for tree in (cases.params(PATTERNED)["stack"], cases.batch(PATTERNED))
  )
  side = stack.Side(
    mask.of_tokens(batch.positions, batch.segment_ids),
    llama.Model(PATTERNED).rotary(batch.positions),
  )
  x = jnp.float32(np.random.default_rng(0).normal(size=(2, 16, 32)))
  layers = stack.Stack(llama.Block, PATTERNED, 4, PATTERNED.pattern)
  got = jax.jit(lambda x: layers.apply({"params": params}, x, side)[0])(x)

  def call(kind):
    block = llama.Block(PATTERNED, kind)
    return jax.jit(lambda p, x: block.apply({"params": p}, x, side)[0])

  sliding, full = call("sliding"), call("full")
  by_hand = stack.unstack(params)
  for i, block in enumerate((sliding, full, sliding, full)):
    x = block(by_hand[f"layer_{i}"], x)
  np.testing.assert_allclose(got, x, rtol=0, atol=1e-6 * np.abs(x).max())


def test_a_last_repetition_may_be_cut_short():
  """Sliding, full, sliding: scanned, then one by one, as unrolled."""
  config = dataclasses.replace(PATTERNED, n_layers=3)
  params = cases.params(config)
  assert {*params["stack"]} == {"layers", "layer_2"}
  logits, _ = cases.run(config, params)
  flat = {**params, "stack": stack.unstack(params["stack"])}
  unrolled, _ = cases.run(dataclasses.replace(config, scanned=False), flat)
  np.testing.assert_allclose(logits, unrolled, rtol=0, atol=1e-5)
  back = stack.stack(flat["stack"], n_pattern=2)
  jax.tree.map(np.testing.assert_array_equal, back, params["stack"])


DROPPING = gpt.Config(
  vocab_size=8,
  d_model=16,
  n_layers=3,
  n_heads=2,
  d_ff=8,
  dropout=0.5,
  dtype="float32",
)


def dropper(config, deterministic=False):
  """Maps a seed to the six dropout masks of three layers, [6, values].

  Only biases write to the residual stream, each its own power of two: every
  value of the sum is the masks' bits.
  """
  shapes = families.abstract(dataclasses.replace(config, scanned=True))
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)["stack"]
  block = params["layers"]["block_0"]
  powers = jnp.broadcast_to(4.0 ** jnp.arange(3)[:, None], (3, 16))
  block["attention"]["o_bias"] = powers
  block["mlp"]["down_bias"] = 2 * powers
  if not config.scanned:
    params = stack.unstack(params)
  positions = jnp.tile(jnp.arange(8), (2, 1))
  seen = mask.of_tokens(positions, jnp.ones_like(positions))
  layers = stack.Stack(
    gpt.Block, config, 3, config.pattern, config.remat, config.scanned
  )

  @jax.jit
  def run(seed):
    out, _ = layers.apply(
      {"params": params},
      jnp.zeros((2, 8, 16)),
      stack.Side(seen, {}, deterministic),
      rngs={"dropout": jax.random.key(seed)},
    )
    kept = out if deterministic else out / 2  # what is kept counts double
    bits = kept.astype(int).reshape(1, -1) >> jnp.arange(6)[:, None]
    return bits & 1

  return run


@pytest.mark.parametrize("scanned", [True, False])
def test_dropout_masks_are_unique(scanned):
  """256 fair coins for each layer, branch and step: no two masks alike."""
  config = dataclasses.replace(DROPPING, scanned=scanned, remat="full")
  drop = dropper(config)
  masks = np.concatenate([drop(0), drop(1)])
  assert np.all(np.abs(masks.mean(1) - 0.5) < 0.16)  # five sigma
  for first, second in itertools.combinations(masks, 2):
    assert np.abs((first == second).mean() - 0.5) < 0.16
  np.testing.assert_array_equal(drop(0), masks[:6])


def test_nothing_is_dropped_when_deterministic():
  assert np.all(dropper(DROPPING, deterministic=True)(0))
