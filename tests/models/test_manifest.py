"""A manifest finds every damage (C3), whoever looks for it."""

import errno
import json
import os
import random

import pytest
from etils import epath

from models import durable, manifest


@pytest.fixture
def folder(tmp_path) -> epath.Path:
  """A small sealed folder, with a folder in it and an empty file."""
  path = epath.Path(tmp_path) / "7"
  (path / "params" / "d").mkdir(parents=True)
  (path / "params" / "d" / "a1").write_bytes(bytes(range(40)))
  (path / "params" / "index").write_bytes(b"")
  (path / "config.json").write_text('{"model": 1}')
  manifest.seal(path)
  return path


NAMES = ["config.json", "params/d/a1", "params/index"]


def test_it_names_every_file_and_its_digest(folder):
  found = json.loads((folder / manifest.NAME).read_text())
  assert list(found["files"]) == NAMES
  assert found["files"]["params/index"] == {
    "bytes": 0,
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
  }
  assert manifest.verify(folder) is None


def test_every_flipped_bit_is_found(folder):
  """One bit of each byte of each file, the manifest's own too."""
  rng = random.Random(0)
  for name in [*NAMES, manifest.NAME]:
    whole = (folder / name).read_bytes()
    for i in range(len(whole)):
      flipped = bytearray(whole)
      flipped[i] ^= 1 << rng.randrange(8)
      (folder / name).write_bytes(bytes(flipped))
      problem = manifest.verify(folder)
      assert problem and name in problem or name == manifest.NAME, (name, i)
      assert problem, (name, i)
    (folder / name).write_bytes(whole)
  assert manifest.verify(folder) is None


def test_every_cut_and_every_missing_file_is_found(folder):
  for name in [*NAMES, manifest.NAME]:
    whole = (folder / name).read_bytes()
    for length in range(len(whole)):
      (folder / name).write_bytes(whole[:length])
      assert manifest.verify(folder), (name, length)
    (folder / name).write_bytes(whole + b"\0")
    assert manifest.verify(folder), f"{name} is longer"
    (folder / name).unlink()
    assert manifest.verify(folder), f"{name} is gone"
    (folder / name).write_bytes(whole)
  assert manifest.verify(folder) is None


@pytest.mark.parametrize(
  "text", ["[]", "null", "{}", '{"format": 1, "files": []}', '{"format": 2}']
)
def test_a_manifest_of_another_kind_is_no_manifest(folder, text):
  (folder / manifest.NAME).write_text(text)
  assert manifest.NAME in manifest.verify(folder)


def test_shares_of_three_cover_all(folder):
  for name in NAMES:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole + b"\0")
    found = [manifest.verify(folder, i, 3) for i in range(3)]
    assert [bool(problem) for problem in found].count(True) == 1
    (folder / name).write_bytes(whole)


def test_what_is_known_is_not_read_again(folder):
  known = manifest.describe(folder, NAMES[1:])
  (folder / NAMES[1]).write_bytes(b"changed since")
  manifest.seal(folder, known)
  assert NAMES[1] in manifest.verify(folder)


def test_a_file_that_cannot_be_read_is_told(folder, monkeypatch):
  def fail(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(manifest.hashlib, "file_digest", fail)
  assert "Input/output error" in manifest.verify(folder)


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path, monkeypatch):
  path = epath.Path(tmp_path) / "config.json"
  durable.write_text(path, "old")

  def fail(_):
    assert path.read_text() == "old"  # the new one is not there before this
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(durable.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
      durable.write_text(path, "new")
  assert path.read_text() == "old"
  durable.write_text(path, "new")
  assert path.read_text() == "new"
  assert [p.name for p in path.parent.iterdir()] == ["config.json"]


def test_the_manifest_comes_last(folder, monkeypatch):
  """All it names is on the disk before it has its name."""
  on_disk = []
  sync = os.fsync

  def note(descriptor):
    on_disk.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    sync(descriptor)

  (folder / manifest.NAME).unlink()
  monkeypatch.setattr(durable.os, "fsync", note)
  manifest.seal(folder)
  names = [path.removeprefix(f"{folder}") for path in on_disk]
  last = names.index(f"/{manifest.NAME}.part")
  needed = {f"/{name}" for name in NAMES} | {"", "/params", "/params/d"}
  assert needed <= set(names[:last])
  assert names[last + 1 :] == [""]  # and then the name itself
