"""Recurrent layers beside torch.nn's, leaf by leaf."""

import jax
import numpy as np
import pytest

from benchmarks.parity import cases

pytest.importorskip("torch")
from benchmarks.parity import recurrent  # noqa: E402
from models.layers.recurrent import CELLS  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("cell", CELLS)
def test_logits_and_gradients_are_those_of_torch(cell):
  config = recurrent.config(cell)
  logits, gradients = cases.run(config)
  their_logits, their_gradients = recurrent.run(cell)
  real = cases.batch(config).segment_ids > 0
  np.testing.assert_allclose(
    logits[real],
    their_logits[real],
    rtol=0,
    atol=5e-6 * np.abs(their_logits).max(),
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-5 * np.abs(b).max()
    ),
    gradients,
    their_gradients,
  )


def test_committed_numbers_are_what_the_script_makes():
  with np.load(recurrent.STORED, allow_pickle=False) as stored:
    for cell in CELLS:
      logits, gradients = recurrent.run(cell)
      for what, made in (
        ("logits", logits),
        ("gradients", cases.sketch(gradients)),
      ):
        kept = stored[f"{cell}/{what}"]
        np.testing.assert_allclose(
          made, kept, rtol=0, atol=1e-5 * np.abs(kept).max()
        )
