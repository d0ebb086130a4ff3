"""Which files a source names, and what text and JSON lines in them give."""

import gzip
import json
import tracemalloc

import pyarrow as pa
import pytest
import zstandard
from etils import epath

from data import sources
from data.sources import Bad, Reading, stream

TEXTS = ["one\n\n", "zwei \u2028 é", "\tdrei\r\n"]


def read(source, **kwargs):
  return list(sources.documents(str(source), **kwargs))


def items(source, **kwargs):
  return [item for _, item in sources.read(str(source), Reading(**kwargs))]


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
  monkeypatch.setattr(stream, "CHUNK_BYTES", chunk)
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
  text = "\ufeffé\r\n\n\tx\x01"
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
  names = [name for name, *_ in sources.files("stdlib")]
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


GZ = gzip.compress(jsonl(TEXTS), mtime=0)
ZST = zstandard.ZstdCompressor(write_checksum=True).compress(jsonl(TEXTS))


@pytest.mark.parametrize(
  "name, raw, place, kind, says",
  [
    ("a.jsonl", jsonl(TEXTS, "body"), ":1", "key", "'text'; it has: body, n"),
    ("a.jsonl", jsonl(["x"]) + b"{oops}\n", ":2", "json", "not JSON"),
    ("a.jsonl", jsonl(["x"])[:-9], ":1", "json", "not JSON"),
    ("a.jsonl", b'["text"]\n', ":1", "json", "list, not a JSON object"),
    ("a.jsonl", b"[" * 99_999, ":1", "json", "not JSON"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", ":1", "json", "not JSON"),
    ("a.jsonl", b'{"text": 3}\n', ":1", "type", "int, not a string"),
    ("a.jsonl", b'{"text": null}\n', ":1", "type", "NoneType, not a str"),
    ("a.jsonl", b'{"text": "\xff"}\n', ":1", "utf8", "byte 10 is 0xff"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', ":1", "surrogate", "lone surrog"),
    ("a.jsonl", b'{"text": "a\\u0000"}\n', ":1", "nul", "character 1 is NUL"),
    ("a.jsonl", b'{"text": "a\x00"}\n', ":1", "nul", "not JSON"),
    ("a.jsonl", b'{"text": ""}\n', ":1", "empty", "the text is empty"),
    ("a.txt", b"a\nab\xe9\n", ":2", "utf8", "byte 4 is 0xe9"),
    ("a.txt", b"a\n\nab\0", ":3", "nul", "character 5 is NUL"),
    ("a.txt", b"", "", "empty_file", "the file is empty"),
    ("a.txt.gz", b"plain", "", "damaged", "incorrect header check; 0 were"),
    ("a.txt.gz", b"", "", "damaged", "empty, not even compressed"),
    ("a.txt.zst", b"plain", "", "damaged", "Unknown frame"),
    ("a.jsonl.gz", GZ[:-9], "", "damaged", "Truncated compressed stream"),
    ("a.jsonl.zst", ZST[:-9], "", "damaged", "Truncated compressed stream"),
    ("a.txt.gz", GZ + b"junk", "", "damaged", "incorrect header"),
  ],
)
def test_what_is_bad_is_named(tmp_path, name, raw, place, kind, says):
  """D9."""
  (tmp_path / name).write_bytes(raw)
  found = [item for item in items(tmp_path / name) if isinstance(item, Bad)]
  assert [(bad.where, bad.kind) for bad in found][:1] == [
    (f"{tmp_path / name}{place}", kind)
  ]
  assert says in found[0].reason
  is_damaged = kind == "damaged"
  assert found[0].lost_bytes == (max(len(raw), 1) if is_damaged else 0)
  json.dumps(found[0], ensure_ascii=False).encode()  # the excerpt is text
  assert len(found[0].excerpt) <= 4 * 120


def test_around_what_is_bad_all_is_read(tmp_path):
  lines = [b"\xff\n", b"{\n", b'{"text": 1}\n', b"\n", b"\0\n"]
  good = [jsonl([text]) for text in TEXTS]
  path = tmp_path / "a.jsonl"
  path.write_bytes(b"".join([good[0], *lines, good[1], lines[0], good[2]]))
  found = items(path)
  assert [x.text for x in found if not isinstance(x, Bad)] == TEXTS
  kinds = [(x.where.split(":")[1], x.kind) for x in found if isinstance(x, Bad)]
  assert kinds == [
    ("2", "utf8"), ("3", "json"), ("4", "type"), ("6", "nul"), ("8", "utf8"),
  ]  # fmt: skip


@pytest.mark.parametrize("name, pack", [
  ("a.jsonl.gz", GZ), ("a.jsonl.zst", ZST)
])  # fmt: skip
def test_a_flipped_bit_never_passes_compression(tmp_path, name, pack):
  for offset in range(0, len(pack), 3):
    raw = bytearray(pack)
    raw[offset] ^= 16
    (tmp_path / name).write_bytes(raw)
    found = items(tmp_path / name)
    sound = [x.text for x in found if not isinstance(x, Bad)]
    # gzip's header has a time and a name, of which nobody speaks.
    assert sound == TEXTS or found[-1].kind == "damaged"
    assert sound == TEXTS[: len(sound)]


@pytest.mark.parametrize("size", [1, 4, 5, 6, 7, 11, 12, 100])
@pytest.mark.parametrize("chunk", [3, 1 << 16])
def test_a_long_text_is_cut_at_line_ends(tmp_path, size, chunk, monkeypatch):
  monkeypatch.setattr(stream, "CHUNK_BYTES", chunk)
  path = tmp_path / "a.txt"
  lines = ["ab\n", "cd\n", "efghij\n", "\n", "k\n", "lm"]
  path.write_text("".join(lines))
  found = items(path, max_bytes=size)
  if size == 100:
    assert [x.id for x in found] == ["a.txt"]
  kept = [line for line in lines if len(line) <= size]
  assert "".join(x.text for x in found if not isinstance(x, Bad)) == (
    "".join(kept)
  )
  for item in found:
    if isinstance(item, Bad):
      number = int(item.where.rpartition(":")[2])
      assert item.kind == "long" and len(lines[number - 1]) > size
    elif size < 100:
      first = int(item.id.rpartition(":")[2])
      assert item.text.startswith(lines[first - 1]) and len(item.text) <= size
  assert len({getattr(x, "id", x[0]) for x in found}) == len(found)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_a_line_of_100_mb_is_not_held(tmp_path, suffix, pack):
  """D9: it is named, its neighbours are read, and memory stays flat."""
  around = {"txt": b"a\n", "jsonl": jsonl(["a"]), "csv": b"text\na\n"}[suffix]
  after = {"txt": b"a\n", "jsonl": jsonl(["a"]), "csv": b"a\n"}[suffix]
  end = {bytes: "", gzip.compress: ".gz", zstandard.compress: ".zst"}[pack]
  path = tmp_path / f"a.{suffix}{end}"
  path.write_bytes(pack(around + b"x" * 100_000_000 + b"\n" + after))
  tracemalloc.start()
  before = pa.total_allocated_bytes()
  found = items(path, max_bytes=1 << 20)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert pa.total_allocated_bytes() - before < 1 << 20
  assert peak < 8 << 20
  good, bad, more = found
  assert good.text.strip() == more.text.strip() == "a"
  line = 3 if suffix == "csv" else 2
  assert bad.kind == "long" and bad.where.endswith(f":{line}")
  assert "100000001 bytes" in bad.reason and bad.excerpt == "x" * 120


def test_reading_goes_on_from_any_place(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS) + b"{\n" + jsonl(TEXTS))
  (tmp_path / "b.txt").write_text("b")
  (tmp_path / "c.jsonl").write_bytes(jsonl(TEXTS))
  whole = list(sources.read(str(tmp_path), Reading()))
  assert len(whole) == 11
  for i, (place, _) in enumerate(whole, start=1):
    rest = list(sources.read(str(tmp_path), Reading(), place))
    assert rest == whole[i:]


def test_a_missing_shard_is_missed(tmp_path):
  for i in (0, 1, 3):
    (tmp_path / f"x-{i:03}-of-004.jsonl").write_bytes(jsonl(["x"]))
  with pytest.raises(ValueError, match="x-002-of-004.jsonl is missing"):
    items(tmp_path)
  assert len(items(tmp_path / "x-*.jsonl")) == 3


def test_a_split_is_a_word_of_the_names(tmp_path):
  names = ["train.jsonl", "a/b-train-00.jsonl", "trains.jsonl", "test.jsonl"]
  for name in names:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(jsonl([name]))
  assert {d.text for d in read(f"{tmp_path}#train")} == set(names[:2])
  with pytest.raises(ValueError, match="names no file of the split 'valid'"):
    items(f"{tmp_path}#valid")
  (tmp_path / "c#1.txt").write_text("a name")
  assert [d.text for d in read(tmp_path / "c#1.txt")] == ["a name"]


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

  monkeypatch.setattr(type(epath.Path(path)), "open", refuse)
  with pytest.raises(ValueError, match="a.txt: .*Permission denied"):
    read(path)
