"""A dose of distorted settings: each is refused, plainly, by its name."""

import random

import pytest
from etils import epath

from benchmarks.faults import distort, mutants
from configs import fields, manual, ranges


@pytest.fixture(scope="module")
def singles():
  return list(mutants.mutants(random.Random(0)))


@pytest.mark.slow
def test_a_dose_is_refused(tmp_path):
  found = mutants.run(2000, epath.Path(tmp_path), n_processes=2, seed=1)
  assert found["accepted"] == []
  assert mutants.is_kept(found)
  assert set(found["classes"]) == {
    "key", "section", "type", "range", "choice", "clash", "pair",
  }  # fmt: skip


@pytest.mark.slow
def test_every_setting_of_every_page_has_mutants(singles):
  made = {
    (m.entrypoint, edit.right or edit.key) for m in singles for edit in m.edits
  }
  for entrypoint, sections in mutants.ENTRYPOINTS.items():
    for section, choice in sections.items():
      for cls in choice.values() if isinstance(choice, dict) else [choice]:
        for path in distort.leaves(cls):
          assert (entrypoint, f"{section}.{path}") in made


def test_pages_pass_as_they_are():
  for page in mutants.pages().values():
    right = mutants.Mutant("none", "train.pretrain", page, ())
    assert mutants.judge(right).code == 0


@pytest.mark.parametrize("kind", ["key", "range", "type", "clash"])
@pytest.mark.slow
def test_a_door_that_lets_something_through_is_seen(singles, monkeypatch, kind):
  """The figures fall where what refuses this kind is put out of order."""
  some = [m for m in singles if m.kind == kind][:40]
  before = [mutants.judge(m).code for m in some]
  assert set(before) == {2}
  monkeypatch.setattr(ranges, "holds", lambda spelt, number: True)
  monkeypatch.setattr(mutants.conflicts, "check", lambda config: None)
  monkeypatch.setattr(fields, "cast", lambda value, hint, key: value)
  monkeypatch.setattr(manual, "nearest", lambda *_: "what is that?")
  after = [mutants.judge(m) for m in some]
  if kind == "key":
    assert not any(verdict.named for verdict in after)
  else:
    assert any(verdict.code != 2 for verdict in after)


def test_three_typos():
  for word in ("lr", "weight_decay", "b1"):
    for seed in range(50):
      made = distort.typos(word, random.Random(seed))
      assert 1 < len(made) <= 3 and word not in made
