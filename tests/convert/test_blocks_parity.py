"""Thousands of blocks of each kind beside the package gguf."""

import numpy as np
import pytest

pytest.importorskip("gguf")
from benchmarks.parity import blocks as made  # noqa: E402
from convert import blocks  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("code", blocks.KINDS)
@np.errstate(all="ignore")  # random bits make infinite scales, too
def test_blocks_are_unpacked_as_gguf_does(code):
  packed = made.raw(blocks.KINDS[code], 3000, seed=1)
  np.testing.assert_array_equal(
    blocks.KINDS[code].unpack(packed), made.theirs(code, packed)
  )
