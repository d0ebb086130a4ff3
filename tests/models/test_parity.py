"""Logits and gradients against `transformers`, with the same tiny weights: N14."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import decode, sampling

pytest.importorskip("transformers")
from benchmarks.parity import golden, hf  # noqa: E402
from convert import tensors  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", cases.CASES)
def test_logits_and_gradients_are_those_of_transformers(name):
  config = cases.CASES[name]
  logits, gradients = cases.run(config)
  their_logits, their_gradients = hf.run(config)

  real = cases.batch(config).segment_ids > 0
  scale = np.abs(their_logits).max()
  np.testing.assert_allclose(
    logits[real], their_logits[real], rtol=0, atol=5e-6 * scale
  )
  jax.tree.map_with_path(_assert_close, gradients, their_gradients)


def _assert_close(path, ours, theirs):
  # The gradient of GPT-2's key bias is zero but for rounding: a floor.
  np.testing.assert_allclose(
    ours,
    theirs,
    rtol=0,
    atol=1e-5 * np.abs(theirs).max() + 1e-7,
    err_msg=jax.tree_util.keystr(path),
  )


@pytest.mark.parametrize("name", ["t5", "t5_v1_1", "bart"])
def test_greedy_texts_about_a_source_are_those_of_transformers(name):
  config = dataclasses.replace(cases.CASES[name], max_length=64, start_id=3)
  sources = [[5, 6, 7, 8, 9, 10], [11], list(range(12, 31))]
  theirs = hf.write(config, sources, n_new=12)
  ours = decode.generate(
    config,
    jax.tree.map(jnp.asarray, cases.params(config)),
    [[config.start_id]] * 3,
    sampling.Config(temperature=0.0, max_tokens=12),
    sources=sources,
  )
  assert ours == theirs
  assert len({*map(tuple, ours)}) > 1  # they read what they are about


def test_names_lead_there_and_back():
  for config in cases.CASES.values():
    ours = cases.params(config)
    back = tensors.from_theirs(config, tensors.to_theirs(config, ours))
    jax.tree.map(np.testing.assert_array_equal, back, ours)


def test_committed_numbers_are_what_the_script_makes():
  assert not golden.differences(cases.stored(), golden.make())
