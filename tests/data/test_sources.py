"""Every way to write documents down reads the same; what is broken is named."""

import gzip
import json

import pytest
import zstandard

from data import sources

TEXTS = ["one\n\n", "zwei \u2028 é", "\tdrei\r\n"]


def read(source, **kwargs):
  return list(sources.documents(str(source), **kwargs))


def jsonl(texts, key="text") -> bytes:
  return b"".join(json.dumps({key: t, "n": 1}).encode() + b"\n" for t in texts)


WRITERS = {
  "a.jsonl": lambda raw: raw,
  "a.ndjson": lambda raw: raw.rstrip(b"\n"),
  "a.jsonl.gz": gzip.compress,
  "a.jsonl.zst": zstandard.compress,
  # Two members end to end, cut within a line: as `cat a.gz b.gz` makes them.
  "b.jsonl.gz": lambda raw: gzip.compress(raw[:9]) + gzip.compress(raw[9:]),
  "b.jsonl.zst": lambda raw: (
    zstandard.compress(raw[:9]) + zstandard.compress(raw[9:])
  ),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_jsonl_is_a_document_a_line(tmp_path, name, chunk, monkeypatch):
  monkeypatch.setattr(sources, "CHUNK_BYTES", chunk)
  (tmp_path / name).write_bytes(WRITERS[name](jsonl(TEXTS)))
  found = read(tmp_path / name)
  assert [d.text for d in found] == TEXTS
  assert [d.id for d in found] == [f"{name}:{i}" for i in (1, 2, 3)]


def test_blank_lines_count_as_lines(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b"\n" + jsonl(["x"]) + b"  \n" + jsonl(["y"]))
  assert [d.id for d in read(path)] == ["a.jsonl:2", "a.jsonl:4"]


@pytest.mark.parametrize("pack", [None, gzip.compress, zstandard.compress])
def test_a_text_file_is_a_document(tmp_path, pack):
  text = "\ufeffé\r\n\n\tx\x00"
  suffix = {None: "", gzip.compress: ".gz", zstandard.compress: ".zst"}[pack]
  path = tmp_path / f"a.txt{suffix}"
  path.write_bytes((pack or bytes)(text.encode()))
  assert read(path) == [(path.name, text)]


@pytest.fixture
def tree(tmp_path):
  for name in ("b/x.txt", "a.txt", "b/c/y.md", ".git/z.txt", "b/.hidden"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
  return tmp_path


@pytest.mark.parametrize(
  "pattern, names",
  [
    ("", ["a.txt", "b/c/y.md", "b/x.txt"]),
    ("*.txt", ["a.txt"]),
    ("*/*", ["b/x.txt"]),
    ("**/*.txt", ["a.txt", "b/x.txt"]),
    ("b/**", ["b/c/y.md", "b/x.txt"]),
    ("?/*.t[xy]t", ["b/x.txt"]),
    ("**/c/*", ["b/c/y.md"]),
  ],
)
def test_folders_and_patterns(tree, pattern, names):
  found = read(tree / pattern)
  assert [d.text for d in found] == names
  # Names count from the folder that is fixed.
  fixed = "b/" if pattern == "b/**" else ""
  assert [fixed + d.id for d in found] == names


def test_names_do_not_depend_on_the_place(tree, monkeypatch):
  monkeypatch.chdir(tree)
  assert read("b") == read(tree / "b")
  assert read("*.txt") == read(tree)[:1]


def test_stdlib_is_the_library_without_its_tests():
  names = [name for name, _ in sources.files("stdlib")]
  assert {"json/decoder.py", "os.py", "asyncio/tasks.py"} <= set(names)
  assert not {"test", "tests", "site-packages"} & {
    p for n in names for p in n.split("/")
  }
  assert names == sorted(names)
  assert 5e6 < sources.size_bytes("stdlib") < 3e7


def test_what_is_read_adds_up_to_what_is_there(tree):
  (tree / "z.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS)))
  n_read = []
  read(tree, on_read=n_read.append)
  assert sum(n_read) == sources.size_bytes(str(tree)) > 0


@pytest.mark.parametrize(
  "name, raw, says",
  [
    ("a.jsonl", jsonl(TEXTS, "body"), "line 1: no key 'text'; it has: body, n"),
    ("a.jsonl", jsonl(["x"]) + b"{oops}\n", "line 2: not JSON"),
    ("a.jsonl", b'["text"]\n', "line 1: no key 'text'"),
    ("a.jsonl", b'{"text": 3}\n', "line 1: 'text' holds int, not a string"),
    ("a.jsonl", b'{"text": "\xff"}\n', "line 1: not UTF-8 text"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: .* lone surrogate"),
    ("a.txt", b"ab\xe9", "not UTF-8 text .byte 2 is 0xe9."),
    ("a.txt.gz", b"plain", "Cannot read"),
    ("a.txt.zst", b"plain", "Cannot read"),
    (
      "a.jsonl.gz",
      gzip.compress(jsonl(TEXTS), mtime=0)[:-9],
      "ends in the middle",
    ),
    ("a.jsonl.zst", zstandard.compress(jsonl(TEXTS))[:-9], "in the middle"),
    ("a.txt.gz", gzip.compress(b"abc", mtime=0) + b"junk", "Cannot read"),
  ],
)
def test_a_broken_file_is_named(tmp_path, name, raw, says):
  (tmp_path / name).write_bytes(raw)
  with pytest.raises(ValueError, match=says) as caught:
    read(tmp_path / name)
  assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("offset", range(12, 60, 4))
def test_a_flipped_bit_in_gz_never_passes(tmp_path, offset):
  raw = bytearray(gzip.compress(jsonl(TEXTS), mtime=0))
  raw[offset] ^= 16
  (tmp_path / "a.jsonl.gz").write_bytes(raw)
  with pytest.raises(ValueError, match="a.jsonl.gz"):
    read(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize("source", ["nowhere.txt", "no/*.txt", "empty"])
def test_a_source_that_is_not_there(tmp_path, source, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="names no file"):
    read(source)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
  path = tmp_path / "a.txt"
  path.write_text("x")

  def refuse(*_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(type(sources.epath.Path(path)), "open", refuse)
  with pytest.raises(ValueError, match="a.txt: .*Permission denied"):
    read(path)
