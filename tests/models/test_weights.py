"""Weights of every kind through the one einsum that knows them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.test_util import check_grads

from benchmarks.parity import cases
from models import families, weights
from models.weights import LoraArray, QuantArray
from sharding import rules

SIZES = dict(B=2, T=6, D=8, N=4, H=6, F=10, V=12)
# Every form in which the models multiply by a weight.
SPECS = ("BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTD,DF->BTF", "BTD,VD->BTV")
F32, BF16 = jnp.dtype("float32"), jnp.dtype("bfloat16")


def normal(dims, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.float32(rng.normal(size=[SIZES[dim] for dim in dims]))


def operands(spec):
  x_dims, w_dims = spec.split("->")[0].split(",")
  return normal(x_dims, 1), normal(w_dims, 2)


def quantize(w, dims):
  """int8, one scale for each index of the other dimensions."""
  scale = jnp.abs(w).max(dims, keepdims=True) / 127
  return QuantArray(jnp.round(w / scale).astype(jnp.int8), scale)


def lora(w, base, rank=3, n_leading=1, b=0.1):
  rng = np.random.default_rng(3)
  a = jnp.float32(rng.normal(size=(*w.shape[:n_leading], rank)))
  b = jnp.float32(b * rng.normal(size=(rank, *w.shape[n_leading:])))
  return LoraArray(base, a, b)


def merged(w: LoraArray):
  update = jnp.tensordot(w.a, w.b, axes=1)
  return w.base + w.alpha / w.a.shape[-1] * update


@pytest.mark.parametrize("spec", SPECS)
def test_einsum_is_numpys(spec):
  x, w = operands(spec)
  expected = np.einsum(spec, np.float64(x), np.float64(w))
  got = weights.einsum(spec, x, w, F32)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("spec", "dtype"),
  [*((spec, "bfloat16") for spec in SPECS), ("BTD,DF->BTF", "float16")],
)
def test_low_precision_is_rounded_once(spec, dtype):
  """Product and both gradients: exact sums, rounded to the type at the end."""
  dtype = jnp.dtype(dtype)

  @functools.partial(jax.jit, static_argnums=0)
  def product_and_gradients(multiply, x, w, g):
    y, pull = jax.vjp(multiply, x, w)
    return y, *pull(g)

  low = [x.astype(dtype) for x in operands(spec)]
  low.append(normal(spec.split("->")[1], 4).astype(dtype))
  ours = product_and_gradients(
    lambda x, w: weights.einsum(spec, x, w, dtype), *low
  )
  exact = product_and_gradients(
    functools.partial(jnp.einsum, spec), *(x.astype(F32) for x in low)
  )
  half_a_step = jnp.finfo(dtype).eps / 2
  for rounded, wide in zip(ours, exact, strict=True):
    assert rounded.dtype == dtype
    np.testing.assert_allclose(
      np.float32(rounded), wide, rtol=1.01 * half_a_step, atol=1e-5
    )


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_finite_differences(spec):
  x, w = operands(spec)
  multiply = jax.jit(lambda x, w: weights.einsum(spec, x, w, F32))
  check_grads(multiply, (x, w), order=1, modes=("rev",), eps=0.1, rtol=1e-3)


def test_out_keeps_the_sums_unrounded():
  x, w = operands("BTD,VD->BTV")
  x, w = jnp.asarray(x, BF16), jnp.asarray(w, BF16)
  wide = weights.einsum("BTD,VD->BTV", x, w, BF16, F32)
  assert wide.dtype == F32
  np.testing.assert_allclose(
    wide, np.einsum("BTD,VD->BTV", np.float32(x), np.float32(w)), atol=1e-5
  )


@pytest.mark.parametrize("spec", SPECS)
def test_int8_errs_by_less_than_a_percent(spec):
  x, w = operands(spec)
  contracted = tuple(
    i
    for i, dim in enumerate(spec.split("->")[0].split(",")[1])
    if dim not in spec.split("->")[1]
  )
  exact = weights.einsum(spec, x, w, F32)
  got = weights.einsum(spec, x, quantize(w, contracted), F32)
  error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
  assert 1e-4 < error < 0.01


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("spec", SPECS)
def test_lora_with_zero_b_is_its_base_to_the_bit(spec, dtype):
  x, w = operands(spec)
  for base in (w, quantize(w, (0,))):
    np.testing.assert_array_equal(
      weights.einsum(spec, x, lora(w, base, b=0), dtype),
      weights.einsum(spec, x, base, dtype),
    )


@pytest.mark.parametrize("spec", SPECS)
def test_lora_is_its_merged_weight(spec):
  x, w = operands(spec)
  adapted = lora(w, w, n_leading=2 if spec == "BTNH,NHD->BTD" else 1)
  np.testing.assert_allclose(
    weights.einsum(spec, x, adapted, F32),
    weights.einsum(spec, x, merged(adapted), F32),
    rtol=1e-5,
    atol=2e-5,
  )


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_take_reads_rows_of_every_kind(dtype):
  table, ids = normal("VD"), jnp.array([[3, 0, 11], [3, 3, 5]])
  by_row, by_column = quantize(table, (1,)), quantize(table, (0,))
  adapted = lora(table, table)
  tolerance = dict(rtol=0, atol=1e-6 if dtype == F32 else 0.03)
  for weight, dense in (
    (table, table),
    (by_row, by_row.values * by_row.scale),
    (by_column, by_column.values * by_column.scale),
    (adapted, merged(adapted)),
    (lora(table, by_row, b=0), by_row.values * by_row.scale),
  ):
    rows = weights.take(weight, ids, dtype)
    assert rows.dtype == dtype
    np.testing.assert_allclose(np.float32(rows), dense[ids], **tolerance)


def test_a_tokens_gradient_adds_up_in_fp32():
  """In bf16, 256 + 1 is 256: a frequent token would stop learning."""
  ids = jnp.zeros((1, 1024), jnp.int32)
  gradient = jax.grad(
    lambda table: weights.take(table, ids, BF16).astype(F32).sum()
  )(jnp.ones((2, 4)))
  np.testing.assert_array_equal(gradient, [[1024] * 4, [0] * 4])


@pytest.mark.parametrize("base", ["array", "int8"])
def test_adapters_train_through_scan_remat_and_jit(base):
  """b = 0 gives the base's output to the bit; only a and b get gradients."""
  config = dataclasses.replace(cases.CASES["llama"], remat="full")
  params = jax.tree.map(jnp.asarray, cases.params(config))
  batch = jax.tree.map(jnp.asarray, cases.batch(config))
  attention = params["stack"]["layers"]["block_0"]["attention"]
  q = attention["q"]
  frozen = quantize(q, (1,)) if base == "int8" else q
  a = jnp.float32(np.random.default_rng(0).normal(size=(2, 32, 3)))
  zero_b = jnp.zeros((2, 3, *q.shape[2:]))

  def run(weight):
    attention["q"] = weight
    hidden, _ = families.build(config).apply(
      {"params": params}, batch.tokens, batch.positions, batch.segment_ids
    )
    return jnp.sin(hidden).sum(), hidden

  adapted = jax.jit(
    jax.value_and_grad(lambda ab: run(LoraArray(frozen, *ab)), has_aux=True)
  )
  (_, hidden), (grad_a, grad_b) = adapted((a, zero_b))
  np.testing.assert_array_equal(hidden, jax.jit(run)(frozen)[1])
  assert not np.any(grad_a)  # b = 0 hides a
  assert np.all(np.abs(grad_b).max((1, 2, 3)) > 0.1)


def test_a_frozen_base_gets_no_gradient():
  x, w = operands("BTD,DF->BTF")
  gradient = jax.grad(
    lambda adapted: weights.einsum("BTD,DF->BTF", x, adapted, F32).sum()
  )(lora(w, w))
  assert not np.any(gradient.base)
  assert np.all(gradient.a) and np.all(gradient.b)


@pytest.mark.parametrize(
  "spec", ["BTD,DNH->BTNH", "BTNH,NHD->BTD", "ETD,EDF->ETF"]
)
def test_what_other_devices_multiply_is_the_same(spec, monkeypatch):
  """A CPU has a form of its own; this is the other, of values and gradients."""
  sizes = dict(B=2, T=3, D=8, N=4, H=5, E=2, F=6)
  rng = np.random.default_rng(0)
  x, w = (
    jnp.float32(rng.normal(size=[sizes[d] for d in dims]))
    for dims in spec.split("->")[0].split(",")
  )

  def found():
    out, pull = jax.vjp(
      lambda x, w: weights.einsum(spec, x, w, jnp.dtype("float32")), x, w
    )
    return out, pull(jnp.cos(out))

  here = found()
  monkeypatch.setattr(rules, "platform", lambda: "gpu")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    found(),
    here,
  )
