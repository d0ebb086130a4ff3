"""Dirty input is counted, listed and left out, up to a share; then it stops."""

import gzip
import json

import pytest
from absl import logging

from configs import door
from data import prepare, quarantine, sources
from data.quarantine import Quarantine
from data.sources import Bad, Document
from data.store import Store

GOOD = [f"document {i} é" for i in range(200)]


def jsonl(path, texts, extra=()):
  lines = [json.dumps({"text": text}).encode() for text in texts]
  for place, line in sorted(extra, reverse=True):
    lines.insert(place, line)
  path.write_bytes(b"\n".join(lines) + b"\n")


DIRT = [
  (0, b"\xff\xfe"), (7, b"{"), (50, b'{"body": 1}'), (90, b'{"text": 3}'),
  (91, b'{"text": ""}'), (92, b'{"text": "a\\u0000"}'),
  (199, b'{"text": "\\udc00"}'), (200, b'{"text": "' + b"y" * 9_000 + b'"}'),
]  # fmt: skip


def prepared(in_bytes, folder, **settings):
  settings = {"heldout_fraction": 0.1, "max_document_bytes": 4_000} | settings
  config = prepare.Config(sources=(f"{folder}/*.*",), **settings)
  return prepare.prepare(config, in_bytes, folder / "out" / "store")


def texts_of(store):
  return [
    bytes((corpus[i] - 3).astype("uint8")).decode()
    for corpus in store.train + store.heldout
    for i in range(len(corpus))
  ]


def test_dirt_is_counted_and_listed_with_its_line(tmp_path, in_bytes):
  """D9."""
  jsonl(tmp_path / "a.jsonl", GOOD, DIRT)
  lines = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(logging, "info", lambda s, *a: lines.append(s % a))
    store = prepared(in_bytes, tmp_path, max_bad_fraction=0.04)
  assert sorted(texts_of(store)) == sorted(GOOD)
  (entry,) = store.manifest["sources"]
  kinds = {"utf8", "json", "key", "type", "empty", "nul", "surrogate", "long"}
  assert entry["bad"] == dict.fromkeys(sorted(kinds), 1)
  raw = (tmp_path / "out" / "store" / "quarantine.jsonl").read_text()
  listed = [json.loads(line) for line in raw.splitlines()]
  numbers = [int(bad["where"].rpartition(":")[2]) for bad in listed]
  there = (tmp_path / "a.jsonl").read_bytes().split(b"\n")
  assert [there[n - 1] for n in numbers] == [raw for _, raw in DIRT]
  assert all(len(bad["excerpt"]) <= 480 and bad["reason"] for bad in listed)
  assert "8 left out (1 empty, 1 json" in lines[-1]
  store.verify()


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece_bpe"])
def test_too_much_of_it_stops_and_says_so(tmp_path, kind):
  jsonl(tmp_path / "a.jsonl", GOOD, DIRT)
  tokenizer = prepare.tokenizer_lib.Config(
    kind=kind, vocab_size=259 if kind == "bytes" else 280
  )
  with pytest.raises(ValueError) as caught:
    prepared(tokenizer, tmp_path, max_bad_fraction=0.03)
  said = str(caught.value).splitlines()
  assert len(said) == 5 and "8 bad (1 utf8, 1 json" in said[0]
  assert "beside 200 sound documents" in said[0]
  assert said[1].startswith(f"  {tmp_path}/a.jsonl:1: not UTF-8")
  assert said[2].startswith(f"  {tmp_path}/a.jsonl:9: not JSON")
  assert "data.max_bad_fraction=0.039" in said[4]
  assert not (tmp_path / "out" / "store").exists()
  # The way out that is named is one.
  store = prepared(tokenizer, tmp_path, max_bad_fraction=0.039)
  assert sum(len(c) for c in store.train + store.heldout) == 200


def test_the_default_stops_at_a_share_of_a_thousandth(in_bytes, tmp_path):
  jsonl(tmp_path / "a.jsonl", GOOD * 10, DIRT[:2])
  assert len(texts_of(prepared(in_bytes, tmp_path))) == 2_000
  (tmp_path / "more").mkdir()
  jsonl(tmp_path / "more" / "a.jsonl", GOOD * 10, DIRT[:3])
  with pytest.raises(ValueError, match="max_bad_fraction=0.001 allows"):
    prepared(in_bytes, tmp_path / "more")


def test_a_damaged_file_weighs_with_all_of_its_bytes(tmp_path, in_bytes):
  """D10: what else was in it nobody knows, so it is never a small matter."""
  for i in range(4):
    jsonl(tmp_path / f"{i}.jsonl", GOOD)
    raw = (tmp_path / f"{i}.jsonl").read_bytes()
    (tmp_path / f"{i}.jsonl").unlink()
    packed = gzip.compress(raw, mtime=0)
    cut = packed[:-5] if i == 2 else packed
    (tmp_path / f"{i}.jsonl.gz").write_bytes(cut)
  with pytest.raises(ValueError) as caught:
    prepared(in_bytes, tmp_path, max_bad_fraction=0.2)
  assert "2.jsonl.gz: Truncated" in str(caught.value)
  assert " bytes in damaged files" in str(caught.value)
  store = prepared(in_bytes, tmp_path, max_bad_fraction=0.3)
  (entry,) = store.manifest["sources"]
  damaged = (tmp_path / "2.jsonl.gz").stat().st_size
  assert entry["bad"] == {"damaged": 1} and entry["lost_bytes"] == damaged
  assert len(texts_of(store)) >= 600


def test_empty_files_are_listed_and_allowed(tmp_path, in_bytes):
  for i in range(40):
    (tmp_path / f"{i}.txt").write_text("x" if i % 4 else "")
  store = prepared(in_bytes, tmp_path, max_bad_fraction=0.0)
  assert store.manifest["sources"][0]["bad"] == {"empty_file": 10}


def take(ledger, n_good, n_bad):
  for _ in range(n_good):
    ledger.take(Document("x", "x"))
  for i in range(n_bad):
    ledger.take(Bad(f"f:{i}", "json", "not JSON"))


def test_a_hopeless_source_is_not_read_to_its_end(tmp_path, monkeypatch):
  monkeypatch.setattr(sources, "size_bytes", lambda source: 1 << 30)
  ledger = Quarantine("big", 0.01)
  ledger.read(quarantine.FORETELL_BYTES - 1)
  take(ledger, 100, 100)  # too little is read to judge
  ledger.read(1)
  with pytest.raises(ValueError, match="101 bad"):
    take(ledger, 0, 1)
  ledger = Quarantine("big", 0.01)
  ledger.read(quarantine.FORETELL_BYTES)  # of it 1/16: 32 of about 3,200
  take(ledger, 200, 31)
  with pytest.raises(ValueError):
    take(ledger, 0, 30)


def test_counts_are_kept_over_a_restart(tmp_path):
  (tmp_path / "a.txt").write_text("a")
  first, second = (Quarantine(str(tmp_path), 0.2) for _ in range(2))
  take(first, 10, 2)
  second.restore(json.loads(json.dumps(first.state())), 0)
  assert second.state() == first.state()
  second.close()
  take(second, 0, 1)
  with pytest.raises(ValueError, match="3 bad .3 json. beside 10 sound"):
    second.close()


def test_the_door_prints_it_in_five_lines(tmp_path, in_bytes, capsys):
  jsonl(tmp_path / "a.jsonl", GOOD, DIRT)
  page = {
    "data": {"sources": [f"{tmp_path}/a.jsonl"]},
    "tokenizer": {"kind": "bytes", "vocab_size": 259},
  }
  config = door.build(page, prepare.SECTIONS)
  with pytest.raises(SystemExit) as caught, door.plain_mistakes():
    prepare.main(config, prepare.epath.Path(tmp_path / "run"))
  assert caught.value.code == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 5 and lines[0].startswith("error: data.sources:")


def test_a_flipped_bit_in_the_listing_is_found(tmp_path, in_bytes):
  jsonl(tmp_path / "a.jsonl", GOOD, DIRT)
  store = prepared(in_bytes, tmp_path, max_bad_fraction=1.0)
  path = tmp_path / "out" / "store" / "quarantine.jsonl"
  raw = bytearray(path.read_bytes())
  raw[20] ^= 1
  path.write_bytes(raw)
  with pytest.raises(ValueError, match="quarantine.jsonl is not what"):
    Store(store.folder).verify()
