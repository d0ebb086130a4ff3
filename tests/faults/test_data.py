"""A small dose of `python -m benchmarks.faults.data`."""

import collections

import pytest
from etils import epath

from benchmarks.faults import data
from data import store


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return data.write_text(epath.Path(tmp_path_factory.mktemp("in")) / "text")


@pytest.fixture(scope="module")
def opened(config, tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole") / "whole"
  data.prepare_store(config, str(folder))
  return store.Store(folder)


@pytest.mark.slow
def test_a_stream_that_is_cut_loses_and_repeats_nothing(opened):
  """D1, D2."""
  assert data.streams(1, opened) == {
    "hosts": 8, "points": 1, "streams": 9,
    "digests": 1, "lost": 0, "repeated": 0,
  }  # fmt: skip


def test_a_preparation_that_is_killed_ends_at_the_same_bytes(config, opened):
  """D16, with SIGKILL."""
  folder = epath.Path(opened.folder).parent
  found = data.kills(3, config, folder)
  assert found["kills"] == 3
  assert found["identical"] == found["prepared"] > 0


def test_what_is_lost_would_be_counted(opened):
  """The instrument sees a document that is left out, and one that is twice."""
  batches, begun = data.run(opened, [(20, 1)])
  assert data.compare(opened, begun) == (0, 0)
  place = max(begun, key=lambda place: len(begun[place]))
  skipped = {**begun, place: begun[place][:1] + begun[place][2:]}
  assert data.compare(opened, skipped) == (1, 1)
  twice = {**begun, place: [*begun[place][:2], *begun[place][1:]]}
  assert data.compare(opened, twice)[1] == 1
  assert data.digest(batches[1:]) != data.digest(batches[:-1])
  counted = collections.Counter(
    origin for row in begun.values() for origin in row
  )
  assert len(counted) > 50
