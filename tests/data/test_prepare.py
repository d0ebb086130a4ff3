"""A store holds each document once, appears whole, and is never mistaken."""

import collections
import dataclasses
import itertools
import json
import pathlib
import random

import numpy as np
import pytest
from absl import logging
from etils import epath

from configs import door
from data import prepare, sources, train_tokenizer
from data import tokenizer as tokenizer_lib
from data.store import Store


def texts_of(corpora):
  ids = [corpus[i] for corpus in corpora for i in range(len(corpus))]
  return [bytes((x - 3).astype(np.uint8)).decode() for x in ids]


def config_for(*paths, **settings):
  settings = {"heldout_fraction": 0.2} | settings
  return prepare.Config(sources=tuple(map(str, paths)), **settings)


def test_each_document_is_in_one_split_once(store, texts):
  train, heldout = texts_of(store.train), texts_of(store.heldout)
  assert collections.Counter(train + heldout) == collections.Counter(texts)
  assert 0.1 < len(heldout) / len(texts) < 0.3


def test_the_manifest_counts_what_is_there(store):
  for corpus in store.train + store.heldout:
    assert corpus.n_documents == len(corpus) == len(texts_of([corpus]))
    sizes = [len(t.encode()) for t in texts_of([corpus])]
    assert corpus.n_tokens == corpus.n_bytes == sum(sizes)
    assert sum(s.n_documents for s in corpus.shards) == len(corpus)


def test_shards_are_cut_at_their_size(store):
  (corpus,) = store.train
  start = 0
  for shard in corpus.shards:
    ids = [corpus[i] for i in range(start, start + shard.n_documents)]
    assert sum(2 * len(x) for x in ids) <= 3_000 or len(ids) == 1
    start += shard.n_documents
  assert len(corpus.shards) > 3


def test_the_split_is_the_documents_own(tmp_path, in_bytes):
  """Neither order nor neighbours move a document to the other split."""
  names = [f"{i}.txt" for i in range(60)]

  def heldout(folder, present):
    (tmp_path / folder).mkdir()
    for name in present:
      (tmp_path / folder / name).write_text(name)
    made = prepare.prepare(
      config_for(tmp_path / folder), in_bytes, tmp_path / f"{folder}.store"
    )
    return set(texts_of(made.heldout))

  assert heldout("all", names) & set(names[:40]) == heldout("few", names[:40])


def listing(folder):
  paths = pathlib.Path(folder).rglob("*")
  return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in paths}


def test_a_store_is_reused_with_one_line(store, corpus, in_bytes, monkeypatch):
  lines = []
  monkeypatch.setattr(logging, "info", lambda s, *a: lines.append(s % a))
  before = listing(store.folder)
  config = config_for(corpus, shard_bytes=3_000, weights=(1.0,))
  again = prepare.prepare(config, in_bytes, store.folder)
  assert listing(store.folder) == before
  assert [c.fingerprint for c in again.train] == [
    c.fingerprint for c in store.train
  ]
  assert len(lines) == 1 and lines[0].startswith("reusing the store")


def test_preparing_twice_gives_the_same_shards(
  store, corpus, in_bytes, tmp_path
):
  config = config_for(corpus, shard_bytes=3_000)
  again = prepare.prepare(config, in_bytes, tmp_path / "out")
  assert again.manifest == store.manifest


@pytest.mark.parametrize(
  "settings, says",
  [
    (dict(heldout_fraction=0.3), "data.heldout_fraction was 0.2, is 0.3"),
    (dict(text_key="body"), "data.text_key was 'text', is 'body'"),
  ],
)
def test_a_store_of_other_settings_is_refused(
  store, corpus, in_bytes, settings, says
):
  config = config_for(corpus, **({"shard_bytes": 3_000} | settings))
  with pytest.raises(ValueError, match=says) as caught:
    prepare.prepare(config, in_bytes, store.folder)
  assert "Set data.path" in str(caught.value)


def test_a_store_of_another_tokenizer_is_refused(store, corpus):
  config = config_for(corpus, shard_bytes=3_000)
  other = tokenizer_lib.Config(vocab_size=300)
  with pytest.raises(ValueError, match="tokenizer.vocab_size was 259, is 300"):
    prepare.prepare(config, other, store.folder)


def test_what_is_no_store_is_not_written_over(tmp_path, corpus, in_bytes):
  (tmp_path / "thesis.tex").write_text("dear")
  with pytest.raises(ValueError, match="is not empty"):
    prepare.prepare(config_for(corpus), in_bytes, tmp_path)


def test_several_sources_stay_apart(tmp_path, in_bytes, texts):
  for name, part in (("a", texts[:50]), ("b", texts[50:])):
    lines = [json.dumps({"text": text}) for text in part]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
  config = config_for(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
  made = prepare.prepare(config, in_bytes, tmp_path / "out")
  for i, part in enumerate((texts[:50], texts[50:])):
    both = texts_of([made.train[i]]) + texts_of([made.heldout[i]])
    assert sorted(both) == sorted(part)


def test_a_store_is_a_source(store, corpus, tmp_path):
  (tmp_path / "more").mkdir()
  for i in range(20):
    (tmp_path / "more" / f"{i}.txt").write_text(f"more {i}")
  saved = tokenizer_lib.Config(
    kind="saved", path=str(store.folder), vocab_size=259
  )
  config = config_for(store.folder, tmp_path / "more")
  made = prepare.prepare(config, saved, tmp_path / "out")
  assert texts_of(made.train[:1]) == texts_of(store.train)
  assert texts_of(made.heldout[:1]) == texts_of(store.heldout)
  assert made.train[0].fingerprint == store.train[0].fingerprint
  assert len(made.train[1]) + len(made.heldout[1]) == 20


def test_a_store_of_another_tokenizer_is_no_source(store, tmp_path, texts):
  code = [json.dumps(texts) * 3]
  other = tokenizer_lib.train(tokenizer_lib.Config(vocab_size=320), code)
  other.save(tmp_path / "tok")
  saved = tokenizer_lib.Config(
    kind="saved", path=str(tmp_path / "tok"), vocab_size=320
  )
  with pytest.raises(ValueError, match="was prepared with the tokenizer"):
    prepare.prepare(config_for(store.folder), saved, tmp_path / "out")


@pytest.mark.parametrize(
  "settings, says",
  [
    (dict(sources=()), "names nothing"),
    (dict(weights=(1.0, 2.0)), "2 shares for 1 sources"),
    (dict(sources=("stdlib", "")), "names nothing"),
    (dict(weights=(0.0,)), r"weights\[0\]=0.0: expected float > 0"),
    (dict(heldout_fraction=1.0), r"heldout_fraction=1.0: .* in \[0, 1\)"),
    (dict(shard_bytes=0), "shard_bytes=0"),
  ],
)
def test_settings_that_cannot_be_meant(settings, says):
  with pytest.raises(ValueError, match=says):
    prepare.Config(**settings)


def test_a_corpus_too_small_to_hold_out_is_refused(tmp_path, in_bytes):
  (tmp_path / "b.txt").write_text("all there is")
  with pytest.raises(ValueError, match="holds out none of 1 documents"):
    prepare.prepare(config_for(tmp_path), in_bytes, tmp_path / "out")
  config = config_for(tmp_path, heldout_fraction=0.0)
  made = prepare.prepare(config, in_bytes, tmp_path / "out")
  assert texts_of(made.train) == ["all there is"]


def test_a_corpus_of_nothing_is_refused(tmp_path, in_bytes):
  (tmp_path / "a.txt").write_text("")
  with pytest.raises(ValueError, match="no document to train on"):
    prepare.prepare(config_for(tmp_path), in_bytes, tmp_path / "out")


def test_the_sample_is_of_train_documents_in_any_order(
  store, corpus, texts, monkeypatch
):
  config = config_for(corpus)
  train = set(texts_of(store.train))
  everything = list(prepare.sample(config, 10**9))
  assert set(everything) == train
  some = list(prepare.sample(config, 2_000))
  assert some == everything[: len(some)]
  assert 2_000 <= sum(len(t.encode()) for t in some) < 3_000
  items = list(sources.read(str(corpus), sources.Reading()))
  random.Random(1).shuffle(items)
  monkeypatch.setattr(sources, "read", lambda *_: iter(items))
  assert list(prepare.sample(config, 2_000)) == some


def test_the_entrypoints_meet(corpus, tmp_path, capsys):
  page = {
    "data": {"sources": [str(corpus)]},
    "tokenizer": {"kind": "sentencepiece_bpe", "vocab_size": 320},
  }
  config = door.build(page, train_tokenizer.SECTIONS)
  train_tokenizer.main(config, epath.Path(tmp_path / "tok"))
  said = capsys.readouterr().out
  assert "320 ids" in said and "100 of 100 come back as they were" in said
  with pytest.raises(ValueError, match="already holds tokenizer.model"):
    train_tokenizer.main(config, epath.Path(tmp_path / "tok"))
  page["tokenizer"] = {
    "kind": "saved",
    "path": str(tmp_path / "tok"),
    "vocab_size": 320,
  }
  config = door.build(page, prepare.SECTIONS)
  prepare.main(config, epath.Path(tmp_path))
  made = Store(tmp_path / "store")
  loaded = tokenizer_lib.load(tmp_path / "tok")
  assert made.tokenizer.fingerprint == loaded.fingerprint
  first = itertools.islice(sources.documents(str(corpus)), 1)
  assert loaded.decode(made.train[0][0]) == next(first).text


def test_every_field_is_in_the_settings_or_named_why_not(in_bytes):
  settings = prepare._settings(prepare.Config(), in_bytes)
  fields = {f.name for f in dataclasses.fields(prepare.Config)}
  assert fields - set(settings["data"]) == set(prepare.ELSEWHERE)
  assert prepare.ELSEWHERE == ("weights", "path", "max_bad_fraction")
