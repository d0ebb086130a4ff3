"""Attention over split rows is that of one device: N3, N15, S12.

Packed rows, padding, a row of nothing but padding, windows, grouped heads.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from models import attention_kernels, context_attention
from models.layers import position
from models.layers.mask import Mask
from models.layers.reference import attend
from sharding import context, mesh, rules

B, T, N, K, H = 4, 64, 8, 4, 8
KINDS = {
  "full": {},
  "window": {"window": 9},
  "both ways": {"causal": False},
  "capped": {},
  "prefix": {"prefix": jnp.array([[11] * (T // 3) + [4] * (T - T // 3)] * B)},
}
EXTRAS = {"capped": dict(softcap=2.0, slopes_N=position.alibi_slopes(N))}


def _mask(length=T, **kind):
  segments = np.ones((B, length), np.int32)
  positions = np.tile(np.arange(length, dtype=np.int32), (B, 1))
  for start in (length // 3, length // 2 + 7):
    segments[0, start:] += 1
    positions[0, start:] = np.arange(length - start)
  segments[1, length - 14 :] = 0
  segments[2] = 0
  where = jnp.asarray(positions), jnp.asarray(segments)
  return Mask(*where, *where, **kind)


def _operands(dtype="float32", length=T, d_head=H):
  rng = np.random.default_rng(0)
  shapes = [(B, length, n, d_head) for n in (N, K, K)]
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def _layout(*settings, **sizes):
  sizes = sizes or dict(data=1, fsdp=2, context=4)
  return rules.make(mesh.make(mesh.Config(**sizes)), "fsdp_tensor", *settings)


def _both(kernel, operands, mask, alive=None):
  """The output, and the gradients of a sum that weighs its entries."""
  weights = jnp.cos(jnp.arange(operands[0].size)).reshape(operands[0].shape)
  if alive is not None:
    weights *= alive[..., None, None]

  @jax.jit
  def run(*operands):
    out, pull = jax.vjp(lambda *x: kernel(*x, mask), *operands)
    return out, pull(weights.astype(out.dtype))

  return run(*operands)


@functools.cache
def _expected(kind):
  kernel = functools.partial(attend, **EXTRAS.get(kind, {}))
  return jax.device_get(_both(kernel, _operands(), _mask(**KINDS[kind])))


def _in_order(layout, run, operands, mask):
  """Runs on columns in the order of the layout, and puts them back."""
  columns = context.columns(layout, operands[0].shape[1])
  move = lambda tree, to: jax.tree.map(lambda x: x[:, to], tree)  # noqa: E731
  weights = jnp.cos(jnp.arange(operands[0].size)).reshape(operands[0].shape)
  weights = weights[:, columns].astype(operands[0].dtype)

  @jax.jit
  def both(mask, *operands):
    out, pull = jax.vjp(lambda *x: run(*x, mask), *operands)
    return out, pull(weights)

  with layout.use():
    found = both(move(mask, columns), *move(operands, columns))
  return move(jax.device_get(found), np.argsort(columns))


@pytest.mark.parametrize(
  ("exchange", "order", "kind"),
  [
    *itertools.product(
      ("ring", "gather", "ulysses"),
      ("contiguous", "zigzag"),
      ("full", "window"),
    ),
    ("ring", "zigzag", "both ways"),
    ("ring", "zigzag", "capped"),
    ("gather", "zigzag", "capped"),
    ("ulysses", "contiguous", "capped"),
    ("ring", "zigzag", "prefix"),
    ("gather", "contiguous", "prefix"),
    ("ulysses", "zigzag", "prefix"),
  ],
)
def test_every_exchange_is_the_reference(monkeypatch, exchange, order, kind):
  """Values and gradients; blocks of 5 cut the 16 columns of a shard unevenly."""
  monkeypatch.setattr(context_attention, "BLOCK", 5)
  layout = _layout("chunked", exchange, order)
  run = functools.partial(attention_kernels.run, **EXTRAS.get(kind, {}))
  found = _in_order(layout, run, _operands(), _mask(**KINDS[kind]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6),
    found,
    _expected(kind),
  )
  assert not found[0][2].any()  # the row of padding


@pytest.mark.parametrize("exchange", ["ring", "gather", "ulysses"])
def test_heads_are_split_beside_positions(exchange):
  layout = _layout("reference", exchange, data=1, context=4, tensor=2)
  mask, operands = _mask(), _operands()
  run = functools.partial(attention_kernels.run, **EXTRAS["capped"])
  if exchange == "ulysses":  # four kv heads over eight shards
    layout = _layout("reference", exchange, data=2, context=2, tensor=2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6),
    _in_order(layout, run, operands, mask),
    _expected("capped"),
  )


def test_a_ring_in_bf16_is_as_near_as_the_reference_in_bf16():
  found = _in_order(
    _layout(), attention_kernels.run, _operands("bfloat16"), _mask()
  )
  same = _both(attend, _operands("bfloat16"), _mask())
  for ours, theirs, exact in zip(
    *map(jax.tree.leaves, (found, same, _expected("full"))), strict=True
  ):
    error = [np.abs(np.float32(x) - exact).max() for x in (ours, theirs)]
    assert np.isfinite(error[0]) and error[0] < 1.5 * error[1]


@pytest.mark.parametrize("exchange", ["gather", "ulysses"])
@pytest.mark.parametrize("kind", ["full", "window"])
@pytest.mark.slow
def test_splash_runs_within_an_exchange(exchange, kind):
  """Interpreted; queries of the second shard know where they are."""
  kind = {"full": {}, "window": {"window": 90}}[kind]
  mask = _mask(256, **kind)
  alive = mask.q_segments > 0
  operands = _operands(length=256, d_head=64)
  layout = _layout("auto", exchange, data=2, context=2, tensor=2)

  def splash(*x):
    return attention_kernels.splash(*x, interpret=True)

  with layout.use():
    out, gradients = _both(splash, operands, mask, alive)
  expected, by_reference = _both(attend, operands, mask, alive)
  out = np.where(alive[..., None, None], out, 0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    (out, gradients),
    (expected, by_reference),
  )


def test_a_zigzag_gives_every_shard_as_much_to_see():
  seen = {}
  for order in ("contiguous", "zigzag"):
    layout = _layout("auto", "ring", order)
    columns = context.columns(layout, T).reshape(4, -1)
    seen[order] = (columns + 1).sum(1)
    assert sorted(columns.flat) == list(range(T))
  assert len(set(seen["zigzag"])) == 1
  assert seen["contiguous"][3] > 6 * seen["contiguous"][0]


@pytest.mark.parametrize(
  ("settings", "length", "n_kv_heads", "said"),
  [
    ((), 66, 4, "length=66 is not divisible by context=4, .*multiple of 4"),
    (("auto", "ring", "zigzag"), 68, 4, "not divisible by 8, the pieces"),
    (("auto", "ulysses"), 64, 2, "2 kv heads do not divide over 4 .*'ring'"),
  ],
)
def test_what_does_not_divide_is_told(settings, length, n_kv_heads, said):
  with pytest.raises(ValueError, match=said):
    context.check(_layout(*settings), length=length, n_kv_heads=n_kv_heads)


@pytest.mark.parametrize(
  ("exchange", "order", "length", "chosen"),
  [
    ("ring", "zigzag", 4096, "chunked"),
    ("gather", "contiguous", 4096, "splash"),
    ("gather", "contiguous", 128 * 5, "chunked"),  # 160 a shard
    ("gather", "zigzag", 4096, "chunked"),
    ("ulysses", "contiguous", 4096, "splash"),
  ],
)
def test_auto_never_takes_the_reference(
  monkeypatch, exchange, order, length, chosen
):
  monkeypatch.setattr(rules, "platform", lambda: "tpu")
  with _layout("auto", exchange, order).use():
    found = attention_kernels.choose(length=length, d_head=64, dtype="bfloat16")
  assert found == chosen


def test_splash_in_a_ring_is_refused(monkeypatch):
  monkeypatch.setattr(rules, "platform", lambda: "tpu")
  with (
    _layout("splash").use(),
    pytest.raises(ValueError, match="'ring' has a kernel of its own"),
  ):
    attention_kernels.choose(length=4096, d_head=64, dtype="bfloat16")


def test_a_ring_holds_no_square_of_the_length():
  """Four times the length: temporaries of a shard grow by four."""

  def temporaries(length):
    shape = jax.ShapeDtypeStruct
    ids = shape((1, length), jnp.int32)

    def total(q, k, v, positions, segments):
      mask = Mask(positions, segments, positions, segments)
      return attention_kernels.run(q, k, v, mask).sum()

    wide = [shape((1, length, n, 16), jnp.float32) for n in (2, 1, 1)]
    with _layout(data=1, context=8).use():
      step = jax.jit(jax.grad(total, (0, 1, 2)))
      compiled = step.lower(*wide, ids, ids).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  short, long = temporaries(2**13), temporaries(2**15)
  assert long < 5 * short
