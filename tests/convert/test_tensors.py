"""Every tensor of theirs has its place in our tree, however layers are laid."""

import math

import pytest

from benchmarks.parity import cases
from convert import catalogue, tensors
from models import arrays, families


# Layers of a pattern cut short; experts one by one; fused heads; three dims.
@pytest.mark.parametrize(
  "name", ["gemma3", "qwen2_moe", "falcon_40b", "mamba2", "deepseek_v3"]
)
def test_every_part_lies_in_the_scanned_tree(name):
  config = cases.CASES[name]
  leaves = arrays.by_path(families.abstract(config))
  places = tensors.Places(config)
  for rows in (catalogue.rows(config), catalogue.in_files(config)):
    pieces = tensors.pieces(config, rows)
    assert not tensors.missing(config, pieces)
    filled = {}
    for part in (part for piece in pieces for part in piece.parts):
      path, first = places.of(part)
      assert leaves[path].shape[len(first) :] == part.shape
      filled.setdefault(path, set()).add(first)
    assert filled.keys() == leaves.keys()
    for path, firsts in filled.items():
      n_dims = len(next(iter(firsts)))
      assert len(firsts) == math.prod(leaves[path].shape[:n_dims]), path
