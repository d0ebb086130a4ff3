"""Rotary phases against float64, every scaling against `transformers`: N5."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from configs import fields
from convert.names import rotary as theirs
from models.layers.position import Scaling, bucket, rotary, rotate
from sharding import context, mesh, rules

D_HEAD, THETA = 16, 10_000.0
POSITIONS = jnp.array([[0, 1, 257, 1023, 1024, 4095, 131_071, 2**20 - 1]])
FREQUENCY = THETA ** (-np.arange(0, D_HEAD, 2) / D_HEAD)

SCALINGS = {
  "linear": Scaling(kind="linear", factor=4.0),
  "dynamic": Scaling(kind="dynamic", factor=2.0, original_length=32_768),
  "yarn": Scaling(kind="yarn", factor=16.0, original_length=4096),
  "yarn_said_in_full": Scaling(
    kind="yarn",
    factor=8.0,
    original_length=2048,
    low=2.0,
    high=16.0,
    attention_factor=1.25,
  ),
  "llama3": Scaling(kind="llama3", factor=8.0, original_length=8192),
  "llama3_said_in_full": Scaling(
    kind="llama3", factor=32.0, original_length=1024, low=2.0, high=8.0
  ),
}


def phases(positions=POSITIONS, scaling=None, d_head=D_HEAD):
  return jax.jit(lambda p: rotary(p, d_head, THETA, scaling))(positions)


LENGTH = 65_536


def measured(scaling, d_head=D_HEAD):
  """Frequencies and amplitude, read off the phases at position 1.

  Of a text of LENGTH tokens, whose last one stands behind it.
  """
  one = phases(jnp.array([[1, LENGTH - 1]]), scaling, d_head)
  cos, sin = np.float64(one.cos[0, 0]), np.float64(one.sin[0, 0])
  return np.arctan2(sin, cos), np.hypot(cos, sin)


def test_phases_are_right_up_to_a_million():
  """In fp32, position * frequency alone errs by 0.03 at position 2**20."""
  angles = np.asarray(POSITIONS)[..., None] * FREQUENCY
  got = phases()
  np.testing.assert_allclose(got.cos, np.cos(angles), rtol=0, atol=3e-7)
  np.testing.assert_allclose(got.sin, np.sin(angles), rtol=0, atol=3e-7)


def test_rotation_is_a_complex_product():
  """Pairs (i, i + H/2) turn by the phase."""
  x = np.float32(np.random.default_rng(0).normal(size=(1, 8, 3, D_HEAD)))
  turn = np.exp(1j * np.asarray(POSITIONS)[..., None] * FREQUENCY)[:, :, None]
  turned = (x[..., : D_HEAD // 2] + 1j * x[..., D_HEAD // 2 :]) * turn
  expected = np.concatenate([turned.real, turned.imag], axis=-1)
  got = jax.jit(rotate)(jnp.asarray(x), phases())
  np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def test_bf16_is_rotated_in_fp32():
  x = jnp.ones((1, 8, 1, D_HEAD), jnp.bfloat16)
  low, wide = rotate(x, phases()), rotate(x.astype(jnp.float32), phases())
  assert low.dtype == jnp.bfloat16
  np.testing.assert_array_equal(low, wide.astype(jnp.bfloat16))
  assert phases().cos.dtype == jnp.float32


def test_linear_is_the_position_divided():
  got = phases(4 * POSITIONS[:, :6], SCALINGS["linear"])
  plain = phases(POSITIONS[:, :6])
  np.testing.assert_allclose(got.cos, plain.cos, rtol=0, atol=5e-7)
  np.testing.assert_allclose(got.sin, plain.sin, rtol=0, atol=5e-7)


@pytest.mark.parametrize(
  ("name", "most"), [("dynamic", 3.0), ("yarn", 16.0), ("llama3", 8.0)]
)
def test_fast_pairs_stay_and_slow_pairs_stretch(name, most):
  """Dynamic: 2 * 65,536 / 32,768 - 1 at that length."""
  frequency, _ = measured(SCALINGS[name], d_head=128)
  plain = THETA ** (-np.arange(0, 128, 2) / 128)
  stretch = plain / frequency
  np.testing.assert_allclose(stretch[0], 1, rtol=1e-6)
  np.testing.assert_allclose(stretch[-1], most, rtol=1e-6)
  assert np.all(np.diff(stretch) > -1e-5)


def test_dynamic_scaling_follows_each_text_of_a_row():
  """Packed texts turn as they do alone; one of the trained length, as ever."""
  scaling = Scaling(kind="dynamic", factor=4.0, original_length=8)
  texts = [np.arange(n)[None] for n in (20, 8, 1, 11)]
  packed = phases(jnp.asarray(np.concatenate(texts, axis=1)), scaling)
  alone = [phases(jnp.asarray(text), scaling) for text in texts]
  for name in ("cos", "sin"):
    apart = np.concatenate([getattr(one, name) for one in alone], axis=1)
    np.testing.assert_array_equal(getattr(packed, name), apart)
  plain = phases(jnp.asarray(texts[1]))
  np.testing.assert_allclose(alone[1].cos, plain.cos, rtol=0, atol=1e-6)
  assert np.abs(alone[0].cos - phases(jnp.asarray(texts[0])).cos).max() > 0.1


def test_dynamic_phases_are_right_in_long_texts():
  """Of 65,536 tokens: 5e-7 of the phase, by theirs in float64."""
  n, scaling = LENGTH, SCALINGS["dynamic"]
  at = np.array([1, 257, 8191, n - 1])
  got = phases(jnp.arange(n)[None], scaling)
  grown = scaling.factor * n / scaling.original_length - scaling.factor + 1
  base = THETA * grown ** (D_HEAD / (D_HEAD - 2))
  angles = at[:, None] * base ** (-np.arange(0, D_HEAD, 2) / D_HEAD)
  error = np.abs(got.cos[0, at] - np.cos(angles))
  assert (error <= 5e-7 * (1 + angles)).all()


def test_dynamic_lengths_are_those_of_texts_in_zigzag_and_in_padded_rows():
  scaling = Scaling(kind="dynamic", factor=4.0, original_length=8)
  texts = np.concatenate([np.arange(24), np.arange(8)])[None]
  here = phases(jnp.asarray(texts), scaling)
  sizes = mesh.Config(data=2, context=4, context_order="zigzag")
  layout = rules.make(mesh.make(sizes, jax.devices()), *sizes.settings)
  order = context.columns(layout, 32)
  assert (order != np.arange(32)).any()
  with layout.use():
    there = phases(jnp.asarray(texts[:, order]), scaling)
  np.testing.assert_allclose(there.cos, here.cos[:, order], rtol=0, atol=1e-6)
  # As decoding pads: the last position again on the right, the first on the left.
  padded = np.concatenate([[0] * 4, np.arange(24), [23] * 4])[None]
  beside = phases(jnp.asarray(padded), scaling)
  np.testing.assert_array_equal(beside.cos[0, 4:28], here.cos[0, :24])


def test_yarn_sharpens_attention():
  _, amplitude = measured(SCALINGS["yarn"])
  np.testing.assert_allclose(amplitude, 0.1 * math.log(16) + 1, rtol=1e-6)


@pytest.mark.parametrize(
  "settings",
  [
    dict(kind="dynamic", factor=2.0),
    dict(kind="ntk", factor=2.0),
    dict(kind="linear", factor=0.5),
    dict(kind="linear", factor=2.0, original_length=64),
    dict(kind="yarn", factor=2.0, original_length=64, low=9.0, high=9.0),
    dict(kind="llama3", factor=2.0, original_length=64, low=4.0),
    dict(kind="dynamic", factor=2.0, original_length=64, low=1.0),
    dict(kind="longrope", factor=2.0, original_length=64),
    dict(kind="longrope", factor=2.0, short=(1.0,), long=(2.0,)),
    dict(kind="linear", factor=2.0, short=(1.0,)),
    dict(kind="llama3", factor=2.0),
    dict(kind="llama3", factor=2.0, original_length=64, attention_factor=1.0),
  ],
)
def test_scalings_that_say_nothing_or_nonsense_are_refused(settings):
  with pytest.raises(ValueError, match="="):
    fields.make(Scaling, settings, "config.model.rope_scaling")


@pytest.mark.parity
@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_are_those_of_transformers(name):
  transformers = pytest.importorskip("transformers")
  rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
  their_settings = theirs.theirs(THETA, SCALINGS[name], LENGTH)
  config = transformers.LlamaConfig(head_dim=D_HEAD, **their_settings)
  kind = their_settings["rope_parameters"]["rope_type"]
  frequency, factor = rope_utils.ROPE_INIT_FUNCTIONS[kind](
    config, "cpu", seq_len=LENGTH
  )
  got, amplitude = measured(SCALINGS[name])
  np.testing.assert_allclose(got, frequency.double(), rtol=1e-6)
  np.testing.assert_allclose(amplitude, factor, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tpu_turns_by_its_matrix_unit_to_the_same(dtype, monkeypatch):
  """Values; and gradients against those of the formula."""
  rng = np.random.default_rng(0)
  x, g = jnp.asarray(rng.normal(size=(2, 1, 8, 3, D_HEAD)), dtype)
  turns = phases()

  def formula(x):
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = turns.cos[:, :, None], turns.sin[:, :, None]
    out = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return out.astype(dtype)

  wanted, pull = jax.vjp(formula, x)
  for platform in ("cpu", "tpu"):
    monkeypatch.setattr(rules, "platform", lambda: platform)  # noqa: B023
    found, back = jax.vjp(lambda x: rotate(x, turns), x)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(back(g)[0], pull(g)[0])


@pytest.mark.parity
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
  ("n_buckets", "farthest"), [(32, 128), (8, 20), (16, 64), (12, 50)]
)
def test_buckets_of_distances_are_those_of_transformers(
  n_buckets, farthest, causal
):
  torch = pytest.importorskip("torch")
  t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
  ahead = np.arange(-600, 600)
  theirs = t5.T5Attention._relative_position_bucket(
    torch.tensor(ahead), not causal, n_buckets, farthest
  )
  np.testing.assert_array_equal(
    bucket(jnp.asarray(ahead), n_buckets, causal, farthest), theirs.numpy()
  )
