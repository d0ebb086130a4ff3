"""Logits and gradients against `transformers`, with the same tiny weights: N14."""

import jax
import numpy as np
import pytest

from benchmarks.parity import cases

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


def test_names_lead_there_and_back():
  for config in cases.CASES.values():
    ours = cases.params(config)
    back = tensors.from_theirs(config, tensors.to_theirs(config, ours))
    jax.tree.map(np.testing.assert_array_equal, back, ours)


def test_committed_numbers_are_what_the_script_makes():
  assert not golden.differences(cases.stored(), golden.make())
