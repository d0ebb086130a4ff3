"""Sources and stores far away: a memory file system stands for gs://."""

import hashlib
import json
import pathlib
import shutil

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations import memory

from data import nearby, pipeline, prepare, sources
from data.store import Store


@pytest.fixture
def far(monkeypatch, tmp_path):
  """Behind gs:// lies memory; what is fetched goes below tmp_path."""
  held = memory.MemoryFileSystem()

  class There:
    """A file system that takes paths with gs:// for its own."""

    def __getattr__(self, name):
      call = getattr(held, name)

      def told(path, *args, **kwargs):
        args = [
          a.replace("gs://", "/") if isinstance(a, str) else a for a in args
        ]
        return call(str(path).replace("gs://", "/"), *args, **kwargs)

      return told

  monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: There())
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  yield epath.Path("gs://bucket")
  held.rm("/", recursive=True)


def put(folder: pathlib.Path, there: epath.Path) -> None:
  for path in sorted(folder.rglob("*")):
    if path.is_file():
      target = there / path.relative_to(folder).as_posix()
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(path.read_bytes())


def content(folder) -> dict[str, str]:
  found, folders = {}, [epath.Path(folder)]
  while folders:
    for path in folders.pop().iterdir():
      if path.is_dir():
        folders.append(path)
      else:
        name = str(path).removeprefix(str(folder))
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  return found


def test_every_format_is_read_from_far_away(far, tmp_path):
  formats = pytest.importorskip("array_record.python.array_record_module")
  writer = formats.ArrayRecordWriter(str(tmp_path / "d.array_record"), "")
  writer.write(b"array")
  writer.close()
  (tmp_path / "a.txt").write_text("text")
  (tmp_path / "b.jsonl").write_text(json.dumps({"text": "json"}))
  (tmp_path / "c.csv").write_text("text\ncsv\n")
  put(tmp_path, far / "in")
  found = list(sources.documents("gs://bucket/in"))
  assert [d.text for d in found] == ["text", "json", "csv", "array"]
  assert [d.id for d in found] == [
    d.id for d in sources.documents(str(tmp_path))
  ]
  (one,) = sources.documents("gs://bucket/in/*.jsonl")
  assert one.text == "json"
  assert sources.size_bytes("gs://bucket/in") == sources.size_bytes(
    str(tmp_path)
  )


def prepared(corpus, in_bytes, out):
  config = prepare.Config(
    sources=(str(corpus),), heldout_fraction=0.2, shard_bytes=3_000
  )
  return prepare.prepare(config, in_bytes, out)


def test_a_store_far_away_has_the_bytes_of_one_here(
  far, corpus, in_bytes, tmp_path
):
  here = prepared(corpus, in_bytes, tmp_path / "store")
  there = prepared(corpus, in_bytes, "gs://bucket/runs/store")
  assert content("gs://bucket/runs/store") == content(tmp_path / "store")
  there.verify()
  config = pipeline.Config(size=4, length=32)
  batches = [
    pipeline.train_batches(config, store.train, (), range(4), 0)
    for store in (here, there, Store("gs://bucket/runs/store"))
  ]
  for _ in range(60):
    tokens = [next(stream).tokens.tobytes() for stream in batches]
    assert len(set(tokens)) == 1
  assert batches[1].documents(batches[1].state()) == (
    batches[0].documents(batches[0].state())
  )
  # Fetched once, under their digests; nothing else is left on this machine.
  names = {path.stem for path in (tmp_path / "cache" / "throughline").iterdir()}
  digests = {shard.sha256 for corpus in there.train for shard in corpus.shards}
  assert names == digests
  assert prepared(corpus, in_bytes, "gs://bucket/runs/store").manifest == (
    here.manifest
  )


def test_an_upload_that_was_cut_is_done_again(
  far, corpus, in_bytes, tmp_path, monkeypatch
):
  copies = []
  copy_file = nearby.copy_file

  def killed(source, target):
    copies.append(target)
    if len(copies) == 4:
      raise KeyboardInterrupt
    copy_file(source, target)

  out = epath.Path("gs://bucket/runs/store")
  monkeypatch.setattr(prepare, "copy_file", killed)
  with pytest.raises(KeyboardInterrupt):
    prepared(corpus, in_bytes, out)
  assert out.exists() and not (out / "manifest.json").exists()
  prepared(corpus, in_bytes, out).verify()
  (out / "manifest.json").unlink()
  (out / "thesis.tex").write_text("dear")
  with pytest.raises(ValueError, match="is not empty"):
    prepared(corpus, in_bytes, out)


def test_a_shard_that_came_damaged_is_not_kept(far, corpus, in_bytes, tmp_path):
  store = prepared(corpus, in_bytes, "gs://bucket/store")
  (corpus_,) = store.train
  path = corpus_.path_of(corpus_.shards[0])
  raw = bytearray(path.read_bytes())
  raw[100] ^= 1
  path.write_bytes(raw)
  with pytest.raises(ValueError, match="is not what was prepared"):
    corpus_[0]
  assert not list((tmp_path / "cache" / "throughline").iterdir())
  assert corpus_[corpus_.shards[0].n_documents] is not None


def test_what_is_here_is_used_where_it_lies(tmp_path):
  path = epath.Path(tmp_path / "a")
  path.write_text("a")
  assert nearby.cached(path, "no digest is needed") == str(path)
  with nearby.lent(path) as lent:
    assert lent == str(path)
  shutil.rmtree(tmp_path)
