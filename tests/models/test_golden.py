"""Logits and gradients against numbers that `transformers` gave: N11, N14.

`python -m benchmarks.parity.golden` made them.
"""

import jax
import numpy as np
import pytest

from benchmarks.parity import cases


@pytest.fixture(scope="module")
def stored():
  return cases.stored()


NAMES = [
  pytest.param(name, marks=pytest.mark.slow) if name in cases.VARIANTS else name
  for name in cases.CASES
]


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients_are_the_stored_ones(name, stored):
  config, batch = cases.CASES[name], cases.batch(cases.CASES[name])
  np.testing.assert_array_equal(batch.tokens, stored[f"{name}/tokens"])
  logits, gradients = cases.run(config)

  real, theirs = batch.segment_ids > 0, stored[f"{name}/logits"]
  np.testing.assert_allclose(
    logits[real], theirs[real], rtol=0, atol=5e-6 * np.abs(theirs).max()
  )
  paths = jax.tree_util.tree_leaves_with_path(gradients)
  for (path, _), ours, theirs in zip(
    paths, cases.sketch(gradients), stored[f"{name}/gradients"], strict=True
  ):
    np.testing.assert_allclose(
      ours,
      theirs,
      rtol=0,
      atol=1e-5 * theirs[0] + 1e-7,
      err_msg=jax.tree_util.keystr(path),
    )
