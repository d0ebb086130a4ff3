"""What is damaged, missing or of another tokenizer is named, never read."""

import random
import shutil

import numpy as np
import pytest

from data import example, shards
from data import store as store_lib
from data import tokenizer as tokenizer_lib
from data.store import Store


@pytest.fixture
def copy(store, tmp_path):
  shutil.copytree(store.folder, tmp_path / "copy")
  return tmp_path / "copy"


def read_all(folder):
  opened = Store(folder)
  return [c[i] for c in opened.train + opened.heldout for i in range(len(c))]


def shard_of(folder):
  return sorted((folder / "train").glob("*.arrayrecord"))[1]


@pytest.mark.parametrize("n_left", [0, 100, 65_536, -1])
def test_a_truncated_shard_is_named(copy, n_left):
  shard = shard_of(copy)
  raw = shard.read_bytes()
  shard.write_bytes(raw[:n_left])
  with pytest.raises(ValueError, match=f"{shard}.*the manifest says"):
    Store(copy)


def test_a_missing_shard_is_named(copy):
  shard = shard_of(copy)
  shard.unlink()
  with pytest.raises(ValueError, match=f"{shard} is missing"):
    Store(copy)


def test_a_flipped_bit_is_named_or_harmless(copy, store):
  """D10: ArrayRecord's own hashes; what it lets pass must not matter."""
  truth = read_all(store.folder)
  shard, rng = shard_of(copy), random.Random(0)
  raw, n_named = shard.read_bytes(), 0
  used = np.flatnonzero(np.frombuffer(raw, np.uint8))
  for _ in range(60):
    damaged = bytearray(raw)
    damaged[rng.choice(used)] ^= 1 << rng.randrange(8)
    shard.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{shard} is not what was prepared"):
      Store(copy).verify()
    try:
      found = read_all(copy)
    except ValueError as error:
      assert f"{shard} is damaged" in str(error)
      n_named += 1
    else:
      for a, b in zip(found, truth, strict=True):
        np.testing.assert_array_equal(a, b)
  assert n_named > 20


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b""])
def test_a_damaged_index_is_named(copy, damage):
  path = shard_of(copy).with_suffix(".index.zst")
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(ValueError, match=f"{path} is missing or not what"):
    Store(copy).verify()
  corpus = Store(copy).train[0]
  assert corpus.name_of(0)  # of the shard before it
  with pytest.raises(ValueError, match=f"{path} is missing or not what"):
    corpus.name_of(corpus.shards[0].n_documents)


def test_the_index_has_the_lengths(store):
  (corpus,) = store.train
  truth = [len(corpus[i]) for i in range(len(corpus))]
  assert corpus.lengths.tolist() == truth


def test_a_flipped_bit_of_the_manifest_is_found(copy, store):
  """What is read in spite of one is what was written: blanks alone."""
  path, n_harmless = copy / "manifest.json", 0
  raw = path.read_bytes()
  for offset in range(0, len(raw), 5):
    damaged = bytearray(raw)
    damaged[offset] ^= 1 << (offset % 8)
    path.write_bytes(damaged)
    try:
      found = store_lib.read_manifest(store_lib.epath.Path(copy))
    except ValueError as error:
      assert f"{path} is not what was written" in str(error)
    else:
      assert found == store.manifest
      n_harmless += 1
  assert n_harmless < len(raw) / 100
  path.write_bytes(raw[:-3])
  with pytest.raises(ValueError, match="is not what was written"):
    Store(copy)


def test_an_intact_store_verifies(copy):
  Store(copy).verify()


def write_store(folder, ids, vocab_size=259):
  tokenizer = tokenizer_lib.train(
    tokenizer_lib.Config(kind="bytes", vocab_size=259), []
  )
  tokenizer.save(folder)
  writer = shards.ShardWriter(folder, "train/0.arrayrecord")
  for document in ids:
    record = example.to_record(document, vocab_size)
    writer.add("x", record, len(document), 1)
  nothing = shards.ShardWriter(folder, "heldout/0.arrayrecord")
  entry = {"name": "x", "format": "text"}
  entry |= {"train": writer.close(), "heldout": nothing.close()}
  store_lib.write_manifest(
    store_lib.epath.Path(folder),
    {"tokenizer": tokenizer.fingerprint, "sources": [entry], "files": {}},
  )
  return Store(folder)


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path):
  """D12: the highest id that fits is read, the next one is not."""
  (corpus,) = write_store(tmp_path, [[0, 258], [1], [259]]).train
  assert corpus[0].tolist() == [0, 258]
  with pytest.raises(ValueError, match="document 2 has id 259.*below 259"):
    corpus[2]


@pytest.mark.parametrize("vocab_size", [1 << 16, (1 << 16) + 1, 1 << 31])
def test_the_largest_id_survives_writing(tmp_path, vocab_size):
  (corpus,) = write_store(tmp_path, [[vocab_size - 1]], vocab_size).train
  object.__setattr__(corpus, "vocab_size", vocab_size)
  assert corpus[0].tolist() == [vocab_size - 1]
  assert corpus[0].dtype == np.int32


def test_an_id_that_no_record_can_hold_is_refused(tmp_path):
  with pytest.raises(OverflowError):
    write_store(tmp_path, [[1 << 16]])


def test_a_tokenizer_that_was_exchanged_is_refused(copy):
  """D11."""
  (copy / "tokenizer.bytes").write_text("other")
  with pytest.raises(ValueError, match="were made by the tokenizer"):
    Store(copy)


def test_a_store_without_its_tokenizer_is_refused(copy):
  (copy / "tokenizer.bytes").unlink()
  with pytest.raises(ValueError, match="holds no tokenizer"):
    Store(copy)


def test_a_folder_that_is_no_store(tmp_path):
  with pytest.raises(ValueError, match="is no prepared store"):
    Store(tmp_path)


def test_negative_and_far_indices_are_refused(store):
  with pytest.raises(IndexError):
    store.train[0][len(store.train[0])]
  with pytest.raises(IndexError):
    store.train[0][-1]


def test_another_shard_of_the_same_size_is_refused(copy):
  """Whole and right in itself, as if two had been mixed up on a disk (D10)."""
  one, other = sorted((copy / "train").glob("*.arrayrecord"))[:2]
  assert one.stat().st_size == other.stat().st_size
  one.write_bytes(other.read_bytes())
  with pytest.raises(ValueError, match="other documents than were prepared"):
    Store(copy).train[0][0]
