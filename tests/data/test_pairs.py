"""Pairs of texts: what a pair is made of, how often it is foreign, resuming."""

import numpy as np
import pytest

from data import packing

DOCUMENTS = [
  # Ids tell the document and the place in it.
  np.arange(1000 * (i + 1), 1000 * (i + 1) + n, dtype=np.int32)
  for i, n in enumerate([40, 3, 1, 90, 25, 60, 0, 33] * 20)
]
LENGTH = 48


def _rows(n, state=None, seed=0):
  packer = packing.PairPacker(DOCUMENTS, seed)
  if state is not None:
    packer.state = state
  batch = packing.blank(n, LENGTH, paired=True)
  indices = [packer.fill(batch, row) for row in range(n)]
  return batch, indices, packer.state


def _pairs(batch, indices):
  """(document, first part, second part, label) of every segment."""
  for row, documents in enumerate(indices):
    assert batch.segment_ids[row].max() == len(documents)
    for segment, document in enumerate(documents, start=1):
      (at,) = np.nonzero(batch.segment_ids[row] == segment)
      tokens, types = batch.tokens[row, at], batch.types[row, at]
      np.testing.assert_array_equal(
        batch.positions[row, at], np.arange(len(at))
      )
      first, second = tokens[types == 0], tokens[types == 1]
      assert (first[0], first[-1], second[-1]) == (1, 2, 2)
      yield document, first[1:-1], second[:-1], batch.targets[row, at[0]]


def test_the_second_text_follows_the_first_or_comes_from_elsewhere():
  batch, indices, _ = _rows(40)
  labels = []
  for document, first, second, label in _pairs(batch, indices):
    labels.append(label)
    text = DOCUMENTS[document]
    at = first[0] - text[0]
    np.testing.assert_array_equal(first, text[at : at + len(first)])
    follows = np.isin(second, text).all()
    assert follows != label and len(second) > 0
    if follows:
      assert second[0] == first[-1] + 1
    assert (np.diff(second) == 1).all()
  assert 0.3 < np.mean(labels) < 0.7


def test_no_text_is_lost():
  """First parts, and second ones that follow, cover documents in order."""
  batch, indices, _ = _rows(40)
  read = []
  for _, first, second, label in _pairs(batch, indices):
    read += [*first, *(() if label else second)]
  # A last token alone is passed over, as are texts of one.
  expected = np.concatenate(DOCUMENTS)
  expected = expected[: np.searchsorted(expected, read[-1]) + 1]
  missing = set(expected.tolist()) - set(read)
  ends = {int(d[-1]) for d in DOCUMENTS if len(d)}
  assert missing <= ends
  assert read == sorted(read)


@pytest.mark.parametrize("n_before", [1, 7, 20])
def test_rows_go_on_from_a_state(n_before):
  whole, indices, _ = _rows(30)
  _, _, state = _rows(n_before)
  rest, rest_indices, _ = _rows(30 - n_before, state)
  for name in ("tokens", "targets", "types", "segment_ids"):
    np.testing.assert_array_equal(
      getattr(rest, name), getattr(whole, name)[n_before:]
    )
  assert rest_indices == indices[n_before:]


def test_another_seed_draws_other_pairs():
  a, b = _rows(10)[0], _rows(10, seed=1)[0]
  assert (a.tokens != b.tokens).any()
