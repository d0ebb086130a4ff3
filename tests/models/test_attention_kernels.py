"""Every kernel is the reference, forward and backward: N15; none by accident."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import attention_kernels, families
from models.layers import position
from models.layers.mask import Mask
from models.layers.reference import attend
from sharding import mesh, rules

B, N, K, H = 2, 4, 2, 64


def _operands(length, d_head=H):
  rng = np.random.default_rng(length)
  shapes = [(B, length, n, d_head) for n in (N, K, K)]
  return [jnp.float32(rng.normal(size=shape)) for shape in shapes]


def _packed(length, **kind):
  """Three segments, the last cut into by the end; then padding in row 1."""
  segments = np.ones((B, length), np.int32)
  positions = np.tile(np.arange(length, dtype=np.int32), (B, 1))
  for start in (length // 3 + 1, length // 2 + 7):
    segments[0, start:] += 1
    positions[0, start:] = np.arange(length - start)
  segments[1, length - 40 :] = 0
  where = jnp.asarray(positions), jnp.asarray(segments)
  return Mask(*where, *where, **kind)


def _both(kernel, operands, mask):
  """The output, and the gradients of a sum that weighs its entries."""
  alive = np.asarray(mask.q_segments)[..., None, None] > 0
  weights = np.cos(np.arange(operands[0].size)).reshape(operands[0].shape)

  @jax.jit
  def run(*operands):
    out, pull = jax.vjp(lambda *x: kernel(*x, mask), *operands)
    return out, pull(jnp.float32(weights * alive))

  out, gradients = run(*operands)
  return np.where(alive, out, 0), gradients


@pytest.mark.parametrize(
  ("length", "d_head", "kind", "cap"),
  [(128, H, {}, 3.0), (128, H, {"window": 50}, None), (384, H, {}, None),
   (384, H, {"window": 50}, None), (256, H, {"causal": False}, None),
   (256, H, {"causal": False, "window": 50}, None),
   (128, 32, {}, None), (128, 80, {}, 3.0)],
)  # fmt: skip
def test_splash_is_the_reference(length, d_head, kind, cap):
  """Interpreted; grouped heads, packed rows, padding, a soft cap."""
  operands, mask = _operands(length, d_head), _packed(length, **kind)

  def splash(*x):
    return attention_kernels.splash(*x, softcap=cap, interpret=True)

  found = _both(splash, operands, mask)
  expected = _both(functools.partial(attend, softcap=cap), operands, mask)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found,
    expected,
  )


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", [{}, {"window": 50}, {"causal": False}])
def test_what_cudnn_is_told_is_the_reference(kind, alone):
  """The mask and the padded values; the kernel itself: benchmarks/speed."""
  operands, mask = _operands(128), _packed(128, **kind)
  if alone:  # a text a row, the second one padded
    segments = jnp.minimum(mask.q_segments, 1)
    positions = jnp.broadcast_to(jnp.arange(128, dtype=jnp.int32), (B, 128))
    mask = Mask(positions, segments, positions, segments, **kind)

  def cudnn(*x):
    return attention_kernels.cudnn(*x, implementation="xla")

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    _both(cudnn, operands, mask),
    _both(attend, operands, mask),
  )
  q, k, v = operands
  np.testing.assert_array_equal(
    cudnn(q, k, v[..., :40], mask), cudnn(q, k, v, mask)[..., :40]
  )


@pytest.mark.parametrize("length", [64, 300])
def test_chunks_are_the_reference_forward_and_backward(length):
  operands, mask = _operands(length), _packed(length, window=90)
  extras = dict(softcap=3.0, slopes_N=position.alibi_slopes(N))

  def chunked(*x):
    return attention_kernels.chunked(*x, chunk=64, **extras)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6),
    _both(chunked, operands, mask),
    _both(functools.partial(attend, **extras), operands, mask),
  )


def test_chunks_hold_no_square_of_the_length():
  """Four times the length: temporaries grow by four, the reference's by 16."""

  def temporaries(kernel, length):
    shape = jax.ShapeDtypeStruct
    ids = shape((1, length), jnp.int32)

    def total(q, k, v, positions, segments):
      mask = Mask(positions, segments, positions, segments)
      return kernel(q, k, v, mask).sum()

    wide = [shape((1, length, n, 16), jnp.float32) for n in (2, 1, 1)]
    step = jax.jit(jax.grad(total, (0, 1, 2)))
    compiled = step.lower(*wide, ids, ids).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  chunked = [temporaries(attention_kernels.chunked, n) for n in (1024, 4096)]
  whole = [temporaries(attend, n) for n in (1024, 4096)]
  assert chunked[1] < 5 * chunked[0]
  assert whole[1] > 12 * whole[0]


def _alone(attention):
  """The layout of one device that asks for a kernel."""
  one = mesh.make(mesh.Config(), jax.devices()[:1])
  return rules.make(one, "dp", attention)


def test_a_model_in_chunks_is_the_model():
  plain = cases.CASES["mistral"]
  with _alone("chunked").use():
    logits, gradients = cases.run(plain)
  expected, by_reference = cases.run(plain)
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    gradients,
    by_reference,
  )


def test_splash_runs_on_the_shards_of_a_mesh(monkeypatch):
  layout = rules.make(
    mesh.make(mesh.Config(data=2, tensor=2, fsdp=2), jax.devices()),
    "fsdp_tensor",
  )
  operands = [jnp.concatenate([x, x]) for x in _operands(128)]
  mask = jax.tree.map(lambda x: jnp.concatenate([x, x]), _packed(128))

  def splash(*x):
    return attention_kernels.splash(*x, interpret=True)

  with layout.use():
    found = _both(splash, operands, mask)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found,
    _both(attend, operands, mask),
  )


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_what_is_asked_for_and_cannot_run_is_an_error(kernel):
  config = cases.CASES["llama"]
  with (
    _alone(kernel).use(),
    pytest.raises(ValueError, match=f"{kernel}.*PUs, and this is a cpu"),
  ):
    jax.eval_shape(lambda p: cases.run(config, p), families.abstract(config))


@pytest.mark.parametrize(
  ("platform", "length", "d_head", "dtype", "extras", "chosen"),
  [
    ("tpu", 4096, 128, "float32", (), "splash"),
    ("tpu", 4096, 64, "bfloat16", (), "splash"),
    ("tpu", 4096, 64, "bfloat16", ("softcap",), "splash"),
    ("tpu", 4096, 64, "bfloat16", ("alibi",), "chunked"),
    ("tpu", 4000, 128, "bfloat16", (), "chunked"),
    ("tpu", 1000, 128, "bfloat16", (), "reference"),
    ("tpu", 4096, 80, "bfloat16", (), "splash"),
    ("cpu", 1024, 128, "bfloat16", (), "reference"),
    ("cpu", 1025, 128, "bfloat16", (), "chunked"),
    ("gpu", 4000, 48, "bfloat16", (), "cudnn"),
    ("gpu", 4000, 48, "bfloat16", ("softcap",), "chunked"),
    ("gpu", 4096, 128, "float32", (), "chunked"),
    ("gpu", 512, 512, "float16", (), "reference"),
  ],
)
def test_auto_says_what_it_takes(
  platform, length, d_head, dtype, extras, chosen, monkeypatch
):
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  found = attention_kernels.choose(
    length=length, d_head=d_head, dtype=dtype, extras=extras
  )
  assert found == chosen


def test_no_kernel_drops_what_a_model_asks_for(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  model = cases.CASES["bloom"]
  extras = attention_kernels.extras_of(model)
  with (
    _alone("splash").use(),
    pytest.raises(ValueError, match="splash.*no alibi.*Give 'chunked'"),
  ):
    monkeypatch.setattr(rules, "platform", lambda: "tpu")
    attention_kernels.choose(
      length=4096, d_head=64, dtype=model.dtype, extras=extras
    )
