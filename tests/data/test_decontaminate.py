"""Every planted piece of a benchmark is found, and nothing else."""

import json
import random

import pytest

from data import decontaminate, prepare
from data.decontaminate import Config, Index

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARKS = ["", "", ",", ".", "!", "?", ";", " -", "'", '"', ")", "\u2014"]
SPACES = [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2003"]


def a_word(rng) -> str:
  return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 9)))


def a_text(rng, n_words: int) -> str:
  return " ".join(a_word(rng) for _ in range(n_words))


def disguised(rng, text: str) -> str:
  """Another case, other punctuation, other whitespace; the same letters."""
  words = []
  for word in text.split():
    at = rng.randint(0, len(word))
    word = rng.choice([word, word.upper(), word.title()])
    word = word[:at] + rng.choice(["", "", "'", "-", "\u2019"]) + word[at:]
    words.append(rng.choice(["", "(", '"']) + word + rng.choice(MARKS))
  return "".join(word + rng.choice(SPACES) for word in words)


def write(path, items, key="text"):
  path.write_text("".join(json.dumps({key: item}) + "\n" for item in items))
  return str(path)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
  rng = random.Random(0)
  items = [a_text(rng, rng.randint(8, 120)) for _ in range(400)]
  items += ["".join(chr(rng.randint(0x4E00, 0x9F00)) for _ in range(40))] * 2
  path = write(tmp_path_factory.mktemp("bench") / "b.jsonl", items)
  return items, Index(Config(sources=(path,)))


def test_every_planted_leak_is_found(bench):
  """D14: 100 %, at any place, in any disguise."""
  items, index = bench
  rng = random.Random(1)
  for item in items:
    around = a_text(rng, 200).split()
    at = rng.randint(0, 200)
    words = item.split()
    n = min(13, len(words))
    start = rng.randint(0, len(words) - n)
    piece = disguised(rng, " ".join(words[start : start + n]))
    text = " ".join([*around[:at], piece, *around[at:]])
    leak = index.find(text)
    assert leak, (item, text)
    assert leak.shared in "".join(c for c in text.lower() if c.isalnum())


def test_what_is_not_there_is_not_found(bench):
  items, index = bench
  rng = random.Random(2)
  for item in items[:300]:
    assert not index.find(a_text(rng, 300))
    words = item.split()[:12]  # one word short of a leak
    if len(item.split()) > 12:
      assert not index.find(" ".join([a_word(rng), *words, "0000"]))


@pytest.mark.parametrize("at", [-40, -20, -1, 0, 1])
def test_leaks_across_windows_are_found(bench, at):
  items, index = bench
  item = next(item for item in items if len(item.split()) == 13)
  before = "x" * (decontaminate.WINDOW + at)
  assert index.find(f"{before} {item} more")
  assert not index.find(f"{before} {item[:-1]}~ more".replace("~", "0"))


def test_a_short_item_counts_as_a_whole(tmp_path):
  """From 8 words on; below it makes a leak of a document that is just it."""
  eight = "who was the first person on the moon"
  path = write(tmp_path / "b.jsonl", [eight, "Who wrote Hamlet?", "Paris"])
  index = Index(Config(sources=(path,)))
  assert index.find(f"he asked: {eight.title()}? And so on").item == "b.jsonl:1"
  assert not index.find("who was the first person on mars")
  assert index.find(" who WROTE 'Hamlet' ").item == "b.jsonl:2"
  assert not index.find("I know who wrote Hamlet.") and not index.find(
    "Paris!?x"
  )
  fewer = Index(Config(sources=(path,), n_words=3))
  assert fewer.find("I know who wrote Hamlet.")


def test_other_scripts_are_compared_by_their_letters(tmp_path):
  chinese = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
  german = (
    "Die Straße führt über viele große Brücken an den Fluß hinab zum Meer"
  )
  index = Index(
    Config(sources=(write(tmp_path / "b.jsonl", [chinese, german]),))
  )
  assert (
    index.find("古诗：「春眠不觉晓\n处处闻啼鸟\n夜来风雨声」").item
    == "b.jsonl:1"
  )
  assert not index.find("春眠不觉晓，处处闻啼")  # ten characters
  assert index.find(f"x {german.upper()} y").item == "b.jsonl:2"
  assert index.find("x " + german.replace("f", "\uff46") + " y")


def test_several_keys_are_items_of_their_own(tmp_path):
  question, answer = (" ".join(f"{c}{i}" for i in range(20)) for c in "qa")
  path = tmp_path / "b.jsonl"
  path.write_text(json.dumps({"question": question, "answer": answer}) + "\n")
  index = Index(Config(sources=(str(path),), text_keys=("question", "answer")))
  assert index.find(question) and index.find(answer)
  with pytest.raises(ValueError, match="b.jsonl:1: no key 'text'"):
    Index(Config(sources=(str(path),)))


def test_memory_is_of_the_size_of_the_benchmark(bench):
  items, index = bench
  rng = random.Random(3)
  text = a_text(rng, 400_000)
  tables = sum(
    array.nbytes
    for table in index._tables.values()
    for array in (table.hashes, table.grams, table.sieve)
  )
  n_letters = sum(map(len, items))
  assert not index.find(text) and len(text) > 2_000_000
  assert tables < 64 * n_letters


def test_leaks_are_left_out_of_the_store_and_listed(tmp_path, in_bytes, bench):
  items, _ = bench
  rng = random.Random(4)
  clean = [a_text(rng, 60) for _ in range(60)]
  dirty = [f"{a_text(rng, 9)} {disguised(rng, item)}" for item in items[:20]]
  mixed = clean + dirty
  rng.shuffle(mixed)
  config = prepare.Config(
    sources=(write(tmp_path / "web.jsonl", mixed),),
    heldout_fraction=0.2,
    decontaminate=Config(sources=(write(tmp_path / "b.jsonl", items),)),
  )
  store = prepare.prepare(config, in_bytes, tmp_path / "store")
  texts = {
    bytes((corpus[i] - 3).astype("uint8")).decode()
    for corpus in store.train + store.heldout
    for i in range(len(corpus))
  }
  assert texts == set(clean)
  assert store.manifest["sources"][0]["n_leaks"] == 20
  listed = (tmp_path / "store" / "leaks.jsonl").read_text().splitlines()
  named = {json.loads(line)["document"] for line in listed}
  assert named == {
    f"web.jsonl:{i}" for i, text in enumerate(mixed, 1) if text in dirty
  }
  # A store is a source only if the same leaks were looked for.
  other = prepare.Config(
    sources=(str(store.folder),),
    decontaminate=Config(sources=(str(tmp_path / "b.jsonl"),), n_words=8),
  )
  saved = prepare.tokenizer_lib.Config(
    kind="saved", path=str(store.folder), vocab_size=259
  )
  with pytest.raises(ValueError, match="its leaks are not those"):
    prepare.prepare(other, saved, tmp_path / "other")


@pytest.mark.parametrize(
  "settings, says",
  [(dict(n_words=0), "n_words"), (dict(text_keys=()), "text_keys is empty")],
)
def test_settings_that_cannot_be_meant(settings, says):
  with pytest.raises(ValueError, match=says):
    Config(**settings)
