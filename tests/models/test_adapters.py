"""Adapters: typed weights in the places of a base's leaves.

F1, F2, F4, F6.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from models import adapters, arrays, blockwise, families, leaves, llama, weights

MODEL = llama.Config(
  vocab_size=48,
  d_model=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  d_head=4,
  d_ff=32,
  max_length=32,
  dtype="float32",
)
AXES = families.axes(MODEL)
EVERY = ("*/attention/[qkvo]", "*/mlp/*")
TABLES = ("embed/table", "head/table")
KINDS = {
  "lora": adapters.Lora(paths=EVERY + TABLES, rank=3),
  "rslora": adapters.Lora(paths=EVERY, rank=4, stabilized=True),
  "dora": adapters.Lora(paths=EVERY, rank=3, decomposed=True),
  "pissa": adapters.Lora(paths=EVERY, rank=3, init="pissa"),
  "ia3": adapters.IA3(),
}


@pytest.fixture(scope="module")
def base():
  """Its matrices four times as large as they begin: they say something."""
  begun = families.init(MODEL, jax.random.key(0))
  return jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, begun)


@pytest.fixture(scope="module")
def ask():
  """Logits of two rows of text; the model is compiled once for each tree."""
  tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, MODEL.vocab_size)
  positions = jnp.broadcast_to(jnp.arange(8), (2, 8))

  @jax.jit
  def run(params):
    hidden, _ = families.build(MODEL).apply(
      {"params": params}, tokens, positions, jnp.ones((2, 8), jnp.int32)
    )
    return families.logits(MODEL, params, hidden)

  return run


def begun(config, base):
  begin = functools.partial(adapters.begin, config, MODEL)
  return jax.jit(begin)(base, jax.random.key(2))


def moved(own, size=0.1):
  """As if it had been trained: no leaf is what it was."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x + size * jnp.float32(rng.normal(size=x.shape)), own
  )


def joined(config, own, kept, base, key=None):
  return adapters.join(config, MODEL, leaves.join(own, kept), base, key)


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_zero_b_is_the_base_to_the_bit(kind, base, ask):
  params = joined(KINDS[kind], *begun(KINDS[kind], base), base)
  np.testing.assert_array_equal(ask(params), ask(base))


@pytest.mark.parametrize("kind", ["dora", "pissa", "ia3"])
def test_the_others_begin_as_the_base(kind, base, ask):
  params = joined(KINDS[kind], *begun(KINDS[kind], base), base)
  np.testing.assert_allclose(ask(params), ask(base), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged(kind, base, ask):
  own, kept = begun(KINDS[kind], base)
  params = joined(KINDS[kind], moved(own), kept, base)
  merged = jax.jit(lambda p: adapters.merge(AXES, p))(params)
  shapes = jax.tree.map(lambda x: x.shape, merged)
  assert shapes == jax.tree.map(lambda x: x.shape, base)
  got, expected = ask(merged), ask(params)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
  assert abs(expected - ask(base)).max() > 0.01


@pytest.mark.slow
def test_a_quantized_base_is_merged_onto_its_dequantized_values(base, ask):
  held = adapters.hold(
    adapters.Base(path="-", weights="nf4", double=True), AXES, base
  )
  own, kept = begun(KINDS["lora"], held)
  params = joined(KINDS["lora"], moved(own), kept, held)
  merged = jax.jit(lambda p: adapters.merge(AXES, p))(params)
  np.testing.assert_allclose(ask(merged), ask(params), rtol=1e-5, atol=1e-5)
  plain = jax.jit(lambda p: adapters.merge(AXES, p))(held)
  zero = joined(KINDS["lora"], own, kept, held)
  np.testing.assert_array_equal(ask(zero), ask(held))
  np.testing.assert_allclose(ask(plain), ask(held), rtol=1e-5, atol=1e-5)


def test_two_adapters_on_one_base_add_up(base, ask):
  """Joined one after the other; merged in either order."""
  one, other = KINDS["lora"], KINDS["rslora"]
  first, second = moved(begun(one, base)[0]), moved(begun(other, base)[0], 0.05)
  both = joined(other, second, {}, joined(one, first, {}, base))
  merged = adapters.merge(AXES, joined(other, second, {}, base))
  turned = joined(one, first, {}, merged)
  np.testing.assert_allclose(ask(both), ask(turned), rtol=1e-5, atol=1e-5)


def test_the_update_is_alpha_over_rank_or_over_its_root(base):
  for kind, strength in (("lora", 16 / 3), ("rslora", 16 / 2)):
    own, kept = begun(KINDS[kind], base)
    own = moved(own)
    params = joined(KINDS[kind], own, kept, base)
    w = params["stack"]["layers"]["block_0"]["mlp"]["up"]
    a, b = (np.float64(x[1]) for x in (w.a, w.b))
    expected = np.float64(w.base[1]) + strength * a @ b
    got = jax.vmap(weights.dense)(w)[1]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_pissa_begins_as_the_largest_singular_values(base):
  own, kept = begun(KINDS["pissa"], base)
  w = np.float64(base["stack"]["layers"]["block_0"]["mlp"]["up"][0])
  mine = own["stack"]["layers"]["block_0"]["mlp"]["up"]
  u, s, v = np.linalg.svd(w, full_matrices=False)
  best = (u[:, :3] * s[:3]) @ v[:3]
  got = 16 / 3 * np.float64(mine["a"][0]) @ np.float64(mine["b"][0])
  np.testing.assert_allclose(got, best, atol=1e-5)
  assert arrays.by_path(kept).keys() == {
    f"{path}0" for path in arrays.by_path(own)
  }


def test_dora_gives_each_output_its_magnitude(base):
  own, kept = begun(KINDS["dora"], base)
  own = moved(own)
  params = joined(KINDS["dora"], own, kept, base)
  w = jax.tree.map(
    lambda x: x[0], params["stack"]["layers"]["block_0"]["mlp"]["up"]
  )
  length = np.linalg.norm(np.float64(w.dense()), axis=0)
  np.testing.assert_allclose(length, abs(w.magnitude), rtol=1e-5)


def test_dropout_only_with_a_key_and_other_for_each_layer(base, ask):
  config = dataclasses.replace(KINDS["lora"], paths=EVERY, dropout=0.5)
  own, kept = begun(config, base)
  own = moved(own)
  plain, again = (ask(joined(config, own, kept, base)) for _ in range(2))
  np.testing.assert_array_equal(plain, again)
  without = dataclasses.replace(config, dropout=0.0)
  np.testing.assert_array_equal(plain, ask(joined(without, own, kept, base)))
  keyed = [
    ask(joined(config, own, kept, base, jax.random.key(i))) for i in (0, 0, 1)
  ]
  np.testing.assert_array_equal(keyed[0], keyed[1])
  assert abs(keyed[0] - plain).max() > 0.01
  assert abs(keyed[0] - keyed[2]).max() > 0.01
  params = joined(config, own, kept, base, jax.random.key(0))
  of_layers = params["stack"]["layers"]["block_0"]["attention"]["q"].key
  assert len(np.unique(of_layers, axis=0)) == MODEL.n_layers


def test_what_is_dropped_is_made_up_for_in_the_mean():
  x = jnp.ones((1, 4, 4096))
  w = weights.LoraArray(
    jnp.zeros((4096, 4)),
    jnp.ones((4096, 1)) / 4096,
    jnp.ones((1, 4)),
    alpha=1.0,
    key=jax.random.key_data(jax.random.key(0)),
    dropout=0.25,
  )
  y = weights.einsum("BTD,DF->BTF", x, w, jnp.dtype("float32"))
  assert abs(y - 1).max() < 0.05
  assert len(np.unique(y)) == 4  # each token loses others


def test_only_the_adapter_has_a_gradient(base, ask):
  """Every leaf of it, through dropout and a quantized base."""
  config = dataclasses.replace(KINDS["dora"], dropout=0.1)
  held = adapters.hold(adapters.Base(path="-", weights="int4"), AXES, base)
  own, kept = begun(config, held)

  def loss(own):
    params = joined(config, own, kept, held, jax.random.key(3))
    return jnp.square(ask(params)).mean()

  grads = arrays.by_path(jax.jit(jax.grad(loss))(moved(own)))
  assert all(abs(g).max() > 0 for g in grads.values())


@pytest.mark.parametrize(
  ("config", "told"),
  [
    (adapters.Lora(paths=("*/attention/query",)), "matches no parameter"),
    (adapters.Lora(paths=("norm/*",)), "norm/scale is a vector"),
    (adapters.Lora(paths=TABLES, decomposed=True), "is a table, whose rows"),
    (adapters.IA3(paths=TABLES), "is a table, and IA3"),
  ],
)
def test_what_cannot_be_adapted_is_told(config, told):
  with pytest.raises(ValueError, match=told):
    adapters.own_axes(config, MODEL)


@pytest.mark.parametrize(
  ("make", "told"),
  [
    (lambda: adapters.Base(path="-", double=True), "quantizes the scales"),
    (
      lambda: adapters.Lora(init="pissa", decomposed=True),
      "the one changes what the other",
    ),
  ],
)
def test_settings_that_change_nothing_are_told(make, told):
  with pytest.raises(ValueError, match=told):
    make()


@pytest.mark.parametrize("kind", ["nf4", "int4", "int8"])
@pytest.mark.parametrize("double", [False, True])
def test_blocks_err_by_half_a_part_of_their_largest(kind, double):
  rng = np.random.default_rng(0)
  w = jnp.float32(rng.normal(size=(24, 4, 128)) * 0.02)
  held = blockwise.quantize(w, kind, double)
  n_bytes = held.values.nbytes
  assert n_bytes == w.size // (1 if kind == "int8" else 2)
  blocks = np.abs(np.float64(w).reshape(24, 4, 2, 64))
  widest = {"nf4": 0.1519, "int4": 1 / 14, "int8": 1 / 254}[kind]
  bound = (widest * 1.001 + 0.02 * double) * blocks.max(-1, keepdims=True)
  error = abs(np.float64(held.dequantize(jnp.float32) - w)).reshape(
    blocks.shape
  )
  assert (error <= bound).all()
  assert (error.max(-1) > 0.3 * widest * blocks.max(-1)).mean() > 0.9


def test_nf4_is_what_the_paper_prints():
  """Appendix E, and that each number is the value of its own code."""
  ends = [-1.0, -0.6961928009986877, 0.0, 0.7229568362236023, 1.0]
  np.testing.assert_array_equal(
    blockwise.NF4[[0, 1, 7, 14, 15]], np.float32(ends)
  )
  w = jnp.tile(jnp.asarray(blockwise.NF4), 4)[None]
  held = blockwise.quantize(w, "nf4")
  pairs = np.arange(16).reshape(8, 2)
  np.testing.assert_array_equal(
    held.values[0], np.tile(16 * pairs[:, 0] + pairs[:, 1], 4)
  )
  np.testing.assert_array_equal(held.dequantize(jnp.float32), w)


def test_a_block_of_zeros_stays_zeros():
  held = blockwise.quantize(jnp.zeros((2, 64)), "nf4", True)
  np.testing.assert_array_equal(held.dequantize(jnp.float32), 0)
