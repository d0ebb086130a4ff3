"""Encoders: padding, packing and meshes change nothing; what they cannot do."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import attention_kernels, bert, decode, families, sampling
from models.layers import heads
from sharding import mesh, rules

FAMILIES = ("bert_pair", "longformer_texts", "bigbird_words_texts")
LENGTH = 32


def _params(config):
  return jax.tree.map(jnp.asarray, cases.params(config))


def _told(config, params, tokens, positions, segments):
  """All that the heads say of every token, side by side."""
  params, tokens, positions, segments = jax.tree.map(
    jnp.asarray, (params, tokens, positions, segments)
  )
  hidden, _ = families.build(config).apply(
    {"params": params}, tokens, positions, segments
  )
  found = [
    families.asked(config, params, k, hidden) for k in cases.asked(config)
  ]
  mean = heads.mean(hidden, segments)
  return np.concatenate([*found, mean], axis=-1)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_and_packing_change_nothing(name):
  """I2: a text padded to the right, to the left, and behind another one."""
  config = dataclasses.replace(cases.CASES[name], max_length=LENGTH)
  params, rng = cases.params(config), np.random.default_rng(0)
  text, n = rng.integers(4, 48, 17), 17
  tokens = rng.integers(4, 48, (3, LENGTH)).astype(np.int32)
  positions = rng.integers(0, LENGTH, (3, LENGTH)).astype(np.int32)
  segments = np.zeros((3, LENGTH), np.int32)
  starts = (0, LENGTH - n, 11)
  for row, start in enumerate(starts):
    here = np.s_[row, start : start + n]
    tokens[here], positions[here], segments[here] = text, np.arange(n), 1 + row
  segments[2, :11], positions[2, :11] = 1, np.arange(11)
  found = _told(config, params, tokens, positions, segments)
  texts = [found[r, s : s + n] for r, s in enumerate(starts)]
  for other in texts[1:]:
    np.testing.assert_allclose(other, texts[0], rtol=0, atol=2e-5)
  assert np.abs(np.diff(texts[0], axis=0)).max() > 0.1


@pytest.mark.parametrize(
  ("name", "exchange"),
  [*zip(FAMILIES, ("ulysses", "ring", "gather"), strict=True)],
)
def test_every_exchange_of_split_rows_is_one_device(name, exchange):
  """S1, S12: fsdp x tensor x context, with marks, blocks and a biased head."""
  config = cases.CASES[name]
  params = cases.params(config)
  sizes = mesh.Config(data=1, fsdp=2, tensor=2, context=2)
  layout = rules.make(
    mesh.make(sizes, jax.devices()), "fsdp_tensor", "chunked", exchange
  )
  with layout.use():
    logits, gradients = cases.run(config, params)
  expected, alone = cases.run(config, params)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * scale)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-7
    ),
    gradients,
    alone,
  )


def test_a_mean_is_over_the_tokens_of_a_segment():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(1, 6, 4)).astype(np.float32)
  segments = jnp.array([[0, 1, 1, 3, 3, 3]])
  found = heads.mean(jnp.asarray(hidden), segments)
  first, second = hidden[:, 1:3].mean(1), hidden[:, 3:].mean(1)
  expected = np.stack([0 * first, *[first] * 2, *[second] * 3], axis=1)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_head_that_is_not_there_is_named():
  config = cases.CASES["bert_pair"]
  hidden = jnp.zeros((1, 2, 32))
  with pytest.raises(ValueError, match="no head 'spans', but words, texts"):
    families.asked(config, _params(config), "spans", hidden)


def test_an_encoder_does_not_write():
  config = cases.CASES["bert_pair"]
  settings = sampling.Config(max_tokens=2)
  with pytest.raises(ValueError, match="reads a text both ways"):
    decode.generate(config, _params(config), [[5, 6]], settings)


def test_splash_refuses_marked_tokens_by_name():
  extras = attention_kernels.extras_of(cases.CASES["longformer_texts"])
  misfit = attention_kernels._misfit("splash", 128, 64, "bfloat16", extras)
  assert "it has no marked" in misfit


@pytest.mark.parametrize(
  ("changes", "name"),
  [
    (dict(kinds=("words", "words")), "twice"),
    (dict(kinds=("words",), n_labels=3), "n_labels=3"),
  ],
)
def test_impossible_heads_are_refused(changes, name):
  with pytest.raises(ValueError, match=name):
    heads.Config(**changes)


def test_types_need_a_table():
  config = cases.CASES["distilbert_texts"]
  ids = jnp.ones((1, 4), jnp.int32)
  with pytest.raises(ValueError, match="n_types"):
    families.build(config).apply(
      {"params": _params(config)}, ids, ids, ids, types=ids
    )


def test_heads_divide_the_width():
  with pytest.raises(ValueError, match="n_heads=5"):
    bert.Config(**bert.sized(32, 2, 5))
