"""A preparation that dies goes on where it was, and ends at the same bytes."""

import dataclasses
import fcntl
import hashlib
import json
import pathlib
import threading

import pytest
from etils import epath

from data import decontaminate, prepare, shards, store
from data import journal as journal_lib
from data import tokenizer as tokenizer_lib

TOKENIZER = tokenizer_lib.Config(
  kind="sentencepiece_bpe", vocab_size=300, sample_bytes=20_000
)


class Killed(BaseException):
  """Nothing catches it, as nothing catches SIGKILL."""


@pytest.fixture(scope="module")
def config(tmp_path_factory, texts):
  """Two sources with dirt and leaks in them, in many small shards."""
  folder = tmp_path_factory.mktemp("in")
  lines = [json.dumps({"text": text}) for text in texts]
  leak = "one two three four five six seven eight nine ten"
  lines[30:30] = ["{", json.dumps({"text": f"{leak}!"})]
  (folder / "a.jsonl").write_text("\n".join(lines))
  (folder / "b").mkdir()
  for i in range(12):
    (folder / "b" / f"{i:02}.txt").write_text(f"file {i} " * 20)
  (folder / "b" / "05.txt").write_bytes(b"\xff")
  (folder / "bench.jsonl").write_text(json.dumps({"text": leak}))
  return prepare.Config(
    sources=(f"{folder}/a.jsonl", f"{folder}/b"),
    heldout_fraction=0.2,
    shard_bytes=1_500,
    max_bad_fraction=0.2,
    decontaminate=decontaminate.Config(sources=(f"{folder}/bench.jsonl",)),
  )


def run(config, out):
  return prepare.prepare(config, TOKENIZER, out)


def content(folder) -> dict[str, str]:
  """Every file of a folder and its digest."""
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in sorted(pathlib.Path(folder).rglob("*"))
    if path.is_file()
  }


@pytest.fixture(scope="module")
def truth(config, tmp_path_factory):
  out = tmp_path_factory.mktemp("truth") / "store"
  run(config, out)
  assert [path.name for path in out.parent.iterdir()] == ["store"]
  found = content(out)
  assert len(found) > 20 and "leaks.jsonl" in found
  return found


def kill_at(monkeypatch, owner, name, number, after):
  """Lets a function be called so often, and then no more."""
  call, calls = getattr(owner, name), []

  def once(*args, **kwargs):
    calls.append(1)
    if len(calls) == number and not after:
      raise Killed
    result = call(*args, **kwargs)
    if len(calls) == number:
      raise Killed
    return result

  monkeypatch.setattr(owner, name, once)


POINTS = [
  (journal_lib.Journal, "append", [*range(1, 9), 12]),
  (shards.ShardWriter, "add", [1, 40, 90]),
  (shards._Work, "_begin_unit", [2, 5]),
  (store, "write_manifest", [1]),
  (prepare, "_publish", [1]),
  (tokenizer_lib.Tokenizer, "save", [1]),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
  "owner, name, number",
  [(owner, name, n) for owner, name, numbers in POINTS for n in numbers],
  ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_killed_at_any_point_it_ends_at_the_same_bytes(
  config, truth, tmp_path, owner, name, number, after
):
  """D16."""
  out = tmp_path / "store"
  with pytest.MonkeyPatch.context() as patch:
    kill_at(patch, owner, name, number, after)
    with pytest.raises(Killed):
      run(config, out)
  run(config, out).verify()
  assert content(out) == truth
  assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_killed_again_and_again_nothing_is_done_twice(
  config, truth, tmp_path, monkeypatch
):
  """Each life finishes two things; the tokenizer is trained in the first."""
  trained, n_lives = [], 0
  train = tokenizer_lib.train
  monkeypatch.setattr(
    tokenizer_lib, "train", lambda *a: (trained.append(1), train(*a))[1]
  )
  while not (tmp_path / "store").exists():
    n_lives += 1
    with pytest.MonkeyPatch.context() as patch:
      kill_at(patch, journal_lib.Journal, "append", 2, after=True)
      try:
        run(config, tmp_path / "store")
      except Killed:
        pass
  assert content(tmp_path / "store") == truth
  assert len(trained) == 1 and n_lives > 5


def killed(config, out, number):
  with pytest.MonkeyPatch.context() as patch:
    kill_at(patch, journal_lib.Journal, "append", number, after=True)
    with pytest.raises(Killed):
      run(config, out)


@pytest.mark.parametrize("damage", ["shard", "index", "listing", "tokenizer"])
def test_what_was_damaged_meanwhile_is_done_again(
  config, truth, tmp_path, damage
):
  killed(config, tmp_path / "store", 5)
  work = tmp_path / ".store.partial"
  path = {
    "shard": work / "train" / "00-00001.arrayrecord",
    "index": work / "train" / "00-00000.index.zst",
    "listing": work / "quarantine.jsonl",
    "tokenizer": work / "tokenizer.model",
  }[damage]
  path.write_bytes(path.read_bytes()[:-1])
  run(config, tmp_path / "store")
  assert content(tmp_path / "store") == truth


@pytest.mark.parametrize("n_bytes", [0, 1, 20, 200])
def test_a_torn_journal_is_cut_to_what_is_whole(
  config, truth, tmp_path, n_bytes
):
  killed(config, tmp_path / "store", 5)
  path = tmp_path / ".store.journal"
  raw = path.read_bytes()
  path.write_bytes(raw[: len(raw) - n_bytes] + b"\0" * (n_bytes > 20))
  run(config, tmp_path / "store")
  assert content(tmp_path / "store") == truth


def test_other_settings_or_inputs_begin_anew(config, tmp_path, texts):
  other = dataclasses.replace(config, shard_bytes=2_000)
  run(other, tmp_path / "a" / "store")
  killed(config, tmp_path / "b" / "store", 5)
  run(other, tmp_path / "b" / "store")
  assert content(tmp_path / "a") == content(tmp_path / "b")

  path = tmp_path / "more"
  path.mkdir()
  for i in range(9):
    (path / f"{i}.txt").write_text("first")
  grown = dataclasses.replace(config, sources=(config.sources[0], str(path)))
  killed(grown, tmp_path / "c" / "store", 5)
  (path / "3.txt").write_text("grown meanwhile")
  run(grown, tmp_path / "c" / "store")
  run(grown, tmp_path / "d" / "store")
  assert content(tmp_path / "c") == content(tmp_path / "d")


def test_a_raised_limit_goes_on_with_the_work(config, tmp_path, in_bytes):
  """Hours of tokenizing are not lost to a share that was set too low."""
  prepare.prepare(config, in_bytes, tmp_path / "a" / "store")
  out, appended = tmp_path / "b" / "store", []
  strict = dataclasses.replace(config, max_bad_fraction=0.05)
  with pytest.raises(ValueError, match="max_bad_fraction=0.05 allows"):
    prepare.prepare(strict, in_bytes, out)
  before = (out.parent / ".store.journal").read_bytes().splitlines()
  with pytest.MonkeyPatch.context() as patch:
    append = journal_lib.Journal.append
    patch.setattr(
      journal_lib.Journal,
      "append",
      lambda self, entry: (appended.append(entry), append(self, entry)),
    )
    prepare.prepare(config, in_bytes, out)
  assert content(out.parent) == content(tmp_path / "a")
  assert len(before) > 5 and len(appended) < 3


def test_who_comes_second_waits_and_opens_what_the_first_made(
  config, truth, tmp_path, monkeypatch
):
  out = epath.Path(tmp_path / "store")
  lines = []
  monkeypatch.setattr(
    journal_lib.logging, "info", lambda s, *a: lines.append(s % a)
  )
  made = []
  with journal_lib.held(out) as journal:
    other = threading.Thread(target=lambda: made.append(run(config, out)))
    other.start()
    while not lines:
      pass
    assert not journal.folder.exists()
  other.join()
  assert content(out) == truth and len(made) == 1
  assert lines[0].startswith("another process is preparing")


def test_a_lock_that_was_removed_is_not_held(tmp_path):
  """Between opening and locking, the one before may have finished."""
  out = epath.Path(tmp_path / "store")
  flock, path = fcntl.flock, tmp_path / ".store.journal"

  def removed_meanwhile(file, how):
    flock(file, how)
    monkeypatch.undo()
    path.unlink()

  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(journal_lib.fcntl, "flock", removed_meanwhile)
    with journal_lib.held(out):
      assert path.exists()
  assert not path.exists()
