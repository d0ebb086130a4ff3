"""The stream of batches against plain Python, for any hosts and any resume."""

import collections
import hashlib
import itertools
import json
import math
import pathlib
import threading
import time

import numpy as np
import pytest

from data import mixture, packing, pipeline, prepare
from data.batch import Batch
from data.pipeline import Config, Prefetch, TrainBatches
from data.store import Corpus

FIELDS = ("tokens", "targets", "weights", "segment_ids", "positions")
SIZE, LENGTH = 8, 32
CONFIG = Config(size=SIZE, length=LENGTH)


def stream(store, rows=range(SIZE), weights=(), seed=3, config=CONFIG):
  return pipeline.train_batches(config, store.train, weights, rows, seed)


def take(iterator, n) -> list[Batch]:
  return list(itertools.islice(iterator, n))


def documents(store) -> list[tuple[int, ...]]:
  return [tuple(c[i].tolist()) for c in store.train for i in range(len(c))]


def assert_same(a: Batch, b: Batch, rows=slice(None)):
  for field in FIELDS:
    np.testing.assert_array_equal(getattr(a, field)[rows], getattr(b, field))


def sha256(batches: list[Batch]) -> str:
  digest = hashlib.sha256()
  for batch in batches:
    for field in FIELDS:
      array = getattr(batch, field)
      digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
  return digest.hexdigest()


def hosts(store, n_hosts, **kwargs):
  """One iterator for each host, with a host's contiguous rows."""
  rows = np.arange(SIZE).reshape(n_hosts, -1).tolist()
  return [stream(store, part, **kwargs) for part in rows]


def gathered(iterators, n) -> list[Batch]:
  """The global batches that hosts make together."""
  made = [take(iterator, n) for iterator in iterators]
  return [
    Batch(*(np.concatenate([getattr(b, f) for b in step]) for f in FIELDS))
    for step in zip(*made, strict=True)
  ]


def unpacked(batches: list[Batch], row: int) -> list[tuple[int, ...]]:
  """Reads a row's stream back: from each BOS to the target EOS."""
  found, ids = [], []
  for batch in batches:
    pairs = zip(batch.tokens[row], batch.targets[row], strict=True)
    for token, target in pairs:
      if token == 1:
        assert not ids
      else:
        assert ids[-1] == token  # the target before it, in the same document
      ids.append(int(target))
      if target == 2:
        found.append(tuple(ids[:-1]))
        ids = []
  return found


def test_types_and_shapes(store):
  (batch,) = take(stream(store, rows=[5, 2]), 1)
  assert {getattr(batch, f).shape for f in FIELDS} == {(2, LENGTH)}
  kinds = [getattr(batch, f).dtype.name for f in FIELDS]
  assert kinds == ["int32", "int32", "float32", "int32", "int32"]
  whole = take(stream(store), 1)[0]
  assert_same(whole, batch, rows=[5, 2])


@pytest.mark.parametrize("length", [1, 2, 7, 32, 1000])
def test_rows_equal_a_packer_in_plain_python(store, length):
  """D6, D8: the oracle lists one (token, target, document, start) a place."""
  config = Config(size=3, length=length)
  batches = take(stream(store, range(3), config=config), 6)
  order = mixture.shuffled(store.train, (), 3)
  for row in range(3):
    places = []
    for k in itertools.count(row, 3):
      if len(places) >= 6 * length:
        break
      sequence = [1, *order[k].tolist(), 2]
      places += [
        (a, b, k) for a, b in zip(sequence, sequence[1:], strict=False)
      ]
    for step, batch in enumerate(batches):
      part = places[step * length : (step + 1) * length]
      assert batch.tokens[row].tolist() == [token for token, _, _ in part]
      assert batch.targets[row].tolist() == [target for _, target, _ in part]
      groups = [list(g) for _, g in itertools.groupby(part, lambda p: p[2])]
      segments = [s for s, g in enumerate(groups, 1) for _ in g]
      assert batch.segment_ids[row].tolist() == segments
      positions = [i for g in groups for i in range(len(g))]
      assert batch.positions[row].tolist() == positions
      assert batch.weights[row].tolist() == [1.0] * length


def test_interleaved_rows_read_their_documents_in_turn(store):
  """Rows k, k + 3, ... are the stream of a batch three times as large."""
  config = Config(size=2, length=LENGTH, n_interleaved=3)
  batches = take(stream(store, range(2), config=config), 12)
  wide = Config(size=6, length=LENGTH)
  truth = take(stream(store, range(6), config=wide), 4)
  for step, batch in enumerate(batches):
    rows = [2 * (step % 3), 2 * (step % 3) + 1]
    assert_same(truth[step // 3], batch, rows=rows)


def test_training_rows_are_full(store):
  """D6: utilisation is 100 %."""
  assert all((b.segment_ids > 0).all() for b in take(stream(store), 50))


def test_each_document_is_whole_and_comes_once_an_epoch(store):
  """No token lost, none twice, one BOS and one EOS a document."""
  config = Config(size=1, length=LENGTH)
  truth = documents(store)
  n_epoch = sum(len(d) + 1 for d in truth)
  batches = take(
    stream(store, [0], config=config), math.ceil(2 * n_epoch / LENGTH)
  )
  found = unpacked(batches, 0)[: 2 * len(truth)]
  first, second = found[: len(truth)], found[len(truth) :]
  assert collections.Counter(first) == collections.Counter(truth)
  assert collections.Counter(second) == collections.Counter(truth)
  assert first != second != truth


def test_rows_share_the_documents_of_an_epoch_out(store):
  truth, batches = documents(store), take(stream(store), 400)
  n_rounds = min(len(unpacked(batches, row)) for row in range(SIZE))
  assert n_rounds * SIZE >= len(truth)
  dealt = [unpacked(batches, row)[:n_rounds] for row in range(SIZE)]
  in_turn = [document for turn in zip(*dealt, strict=True) for document in turn]
  first = in_turn[: len(truth)]
  assert collections.Counter(first) == collections.Counter(truth)


def test_each_epoch_is_another_permutation(store):
  """D5, on numbers that stand for the documents."""
  n = len(store.train[0])
  order = mixture.shuffled([numbers(n)], (), 0)
  epochs = [[int(order[e * n + i][0]) for i in range(n)] for e in range(5)]
  assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 5
  # Seeds do not share their shuffles, shifted by an epoch.
  other = mixture.shuffled([numbers(n)], (), 1)
  assert [int(other[i][0]) for i in range(n)] not in epochs


class Numbers(Corpus):
  """n documents of a length, of which reading gives a number alone."""

  def __getitem__(self, index):
    return np.array([int(self.name) + index], np.int32)


def numbers(n, length=10, first=0):
  return Numbers(
    name=str(first),
    n_documents=n,
    n_tokens=n * length,
    n_bytes=0,
    shards=(),
    folder="",
    tokenizer="",
    vocab_size=2**31 - 1,
    ends=(1, 2),
  )


@pytest.mark.parametrize("weights", [(), (0.7,)])
@pytest.mark.parametrize("packing", ["segments", "stream"])
def test_the_global_batch_is_the_same_for_1_2_4_8_hosts(
  store, weights, packing
):
  """D1."""
  config = Config(size=SIZE, length=LENGTH, packing=packing)
  digests = {
    sha256(gathered(hosts(store, n, weights=weights, config=config), 20))
    for n in (1, 2, 4, 8)
  }
  assert len(digests) == 1
  other = gathered(hosts(store, 2, seed=4, weights=weights, config=config), 20)
  assert sha256(other) not in digests


@pytest.mark.parametrize("n_interleaved", [1, 3])
def test_resuming_anywhere_on_any_number_of_hosts(store, n_interleaved):
  """D2: nothing lost, nothing repeated, five times in a row."""
  config = Config(size=SIZE, length=LENGTH, n_interleaved=n_interleaved)
  truth = take(stream(store, config=config), 41)
  iterators, made = hosts(store, 4, config=config), []
  for n_steps, n_hosts in [(1, 2), (7, 8), (0, 1), (20, 4), (5, 1)]:
    made += gathered(iterators, n_steps)
    states = [json.loads(json.dumps(it.state())) for it in iterators]
    united = {k: v for state in reversed(states) for k, v in state.items()}
    iterators = hosts(store, n_hosts, config=config)
    for iterator in iterators:
      iterator.restore(united)
  made += gathered(iterators, 8)
  assert sha256(made) == sha256(truth)


@pytest.mark.parametrize(
  "change, says",
  [
    (dict(seed=4), "seed was 3, is 4"),
    (dict(weights=(1.0,)), r"data.weights was \[\], is \[1.0\]"),
    (dict(config=Config(size=16, length=32)), "batch.size was 8, is 16"),
    (dict(config=Config(size=8, length=33)), "batch.length was 32, is 33"),
    (
      dict(config=Config(size=8, length=32, packing="stream")),
      "batch.packing was segments, is stream",
    ),
  ],
)
def test_the_state_of_another_stream_is_refused(store, change, says):
  """D3."""
  state = stream(store).state()
  with pytest.raises(ValueError, match=says):
    stream(store, **change).restore(state)


def test_the_state_of_other_data_is_refused(store):
  """D3: the same settings over documents in another order."""
  state = stream(store).state()
  backwards = pipeline.train_batches(
    CONFIG, store.train * 2, (), range(SIZE), 3
  )
  with pytest.raises(ValueError, match="data was .* is "):
    backwards.restore(state)


def test_the_state_of_another_order_is_refused(store, monkeypatch):
  """D3: as if a library had changed how it shuffles."""
  state = stream(store).state()
  seed = mixture._seed
  monkeypatch.setattr(mixture, "_seed", lambda *entropy: seed(*entropy, 1))
  with pytest.raises(ValueError, match="order was .* is "):
    stream(store).restore(state)


def test_evaluation_reads_what_its_rows_hold(store, monkeypatch):
  """A host of eight reads about an eighth of the documents, each once."""
  (corpus,), reads = store.heldout, []
  record = type(corpus)._record
  monkeypatch.setattr(
    type(corpus),
    "_record",
    lambda self, index: (reads.append(index), record(self, index))[1],
  )
  list(pipeline.eval_batches(store.heldout, 8, 4, [3]))
  n_rows = math.ceil((corpus.n_tokens + corpus.n_documents) / 4 / 8)
  assert len(reads) == len(set(reads)) <= 2 * n_rows
  reads.clear()
  whole = list(pipeline.eval_batches(store.heldout, 8, 4, range(8)))
  assert reads == list(range(len(corpus))) and len(whole) == n_rows


def test_a_state_that_lacks_rows_is_refused(store):
  state = stream(store, rows=range(4)).state()
  with pytest.raises(ValueError, match=r"lacks rows \[4, 5\]"):
    stream(store, rows=[3, 4, 5]).restore(state)


def test_corpora_of_two_tokenizers_are_refused(store):
  other = object.__new__(type(store.train[0]))
  other.__dict__.update(store.train[0].__dict__, tokenizer="f" * 64)
  with pytest.raises(ValueError, match="different tokenizers"):
    pipeline.train_batches(CONFIG, (*store.train, other), (), [0], 0)


MIXED = [numbers(1000, 10), numbers(30, 200, 10**6), numbers(7, 50, 10**7)]


@pytest.mark.parametrize(
  "weights", [(1.0, 1.0, 1.0), (0.9, 0.09, 0.01), (1.0, 50.0, 3.0)]
)
def test_mixtures_converge_to_the_shares_of_tokens(weights, monkeypatch):
  """D4: within 3 sigma of independent draws, exact over a whole deck."""
  monkeypatch.setattr(mixture, "DECK", 1 << 12)
  order = mixture.shuffled(MIXED, weights, 0)
  n = 3_000
  found = np.digitize([order[i][0] for i in range(n)], [10**6, 10**7])
  lengths = np.array([c.n_tokens / c.n_documents for c in MIXED])
  cards = np.array(weights) / lengths
  cards /= cards.sum()
  counts = np.bincount(found, minlength=3)
  sigma = np.sqrt(n * cards * (1 - cards))
  assert (np.abs(counts - n * cards) <= 3 * sigma + n / mixture.DECK).all()
  quotas = np.array(mixture.quotas(MIXED, weights))
  assert quotas.sum() == mixture.DECK
  np.testing.assert_allclose(quotas, mixture.DECK * cards, atol=len(MIXED))


def test_in_a_mixture_each_corpus_keeps_its_own_epochs(monkeypatch):
  """D5: nothing comes a second time before all of its corpus came once."""
  monkeypatch.setattr(mixture, "DECK", 1 << 10)
  order = mixture.shuffled(MIXED, (1.0, 1.0, 1.0), 0)
  found = [int(order[i][0]) for i in range(2 * mixture.DECK)]
  for corpus, first in zip(MIXED, (0, 10**6, 10**7), strict=True):
    n = len(corpus)
    own = [x for x in found if 0 <= x - first < 10**6]
    epochs = [tuple(own[i : i + n]) for i in range(0, len(own), n)]
    assert len(set(epochs)) == len(epochs) >= 2
    assert all(sorted(e) == list(range(first, first + n)) for e in epochs[:-1])


def test_no_row_of_a_mixture_reads_one_corpus_only():
  """Two corpora in turn would give even rows the first one alone."""
  order = mixture.shuffled(MIXED[:2], (10.0, 200.0), 0)  # documents 1 : 1
  for row in range(8):
    share = np.mean([order[row + 8 * k][0] < 10**6 for k in range(300)])
    assert 0.4 < share < 0.6


@pytest.fixture(scope="module")
def two(tmp_path_factory, in_bytes):
  """A corpus of long documents of "a" and one of short ones of "b"."""
  folder = tmp_path_factory.mktemp("two")
  for name, n, length in (("a", 30, 900), ("b", 90, 50)):
    lines = [json.dumps({"text": name * (length + i)}) for i in range(n)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
  config = prepare.Config(
    sources=(f"{folder}/a.jsonl", f"{folder}/b.jsonl"), heldout_fraction=0.1
  )
  return prepare.prepare(config, in_bytes, folder / "store")


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_tokens_of_batches_are_mixed_as_asked(two, share):
  """D4: within 3 sigma of the long documents' number, resumed or not."""
  weights = (share, 1 - share)
  batches = take(stream(two, weights=weights), 900)
  resumed = stream(two, weights=weights)
  resumed.restore(batches_state(two, weights, 400))
  assert sha256(take(resumed, 500)) == sha256(batches[400:])
  tokens = np.concatenate([batch.tokens for batch in batches], axis=1)
  n_a, n_b = (tokens == ord("a") + 3).sum(1), (tokens == ord("b") + 3).sum(1)
  n_tokens = (n_a + n_b).sum()
  sigma = (1 - share) * math.sqrt(share * 900 / n_tokens)
  assert abs(n_a.sum() / n_tokens - share) < 3 * sigma < 0.1
  assert (n_a > 0).all() and (n_b > 0).all()


def batches_state(store, weights, n):
  iterator = stream(store, weights=weights)
  take(iterator, n)
  return iterator.state()


def test_one_stream_forgets_where_documents_end(store):
  config = Config(size=SIZE, length=LENGTH, packing="stream")
  pairs = zip(
    take(stream(store, config=config), 5), take(stream(store), 5), strict=True
  )
  for joined, apart in pairs:
    np.testing.assert_array_equal(joined.tokens, apart.tokens)
    np.testing.assert_array_equal(joined.targets, apart.targets)
    assert (joined.segment_ids == 1).all()
    assert (joined.positions == np.arange(LENGTH)).all()


@pytest.mark.parametrize("size, length", [(8, 32), (3, 7), (64, 128), (1, 1)])
def test_evaluation_reads_every_document_once(store, size, length):
  batches = list(
    pipeline.eval_batches(store.heldout, size, length, range(size))
  )
  rows = [
    (batch.tokens[r], batch.targets[r], batch.weights[r])
    for batch in batches
    for r in range(size)
  ]
  tokens, targets, weights = (
    np.concatenate(x) for x in zip(*rows, strict=True)
  )
  (corpus,) = store.heldout
  truth = [corpus[i].tolist() for i in range(len(corpus))]
  n = corpus.n_tokens + corpus.n_documents
  assert weights.sum() == weights[:n].sum() == n
  assert tokens[:n].tolist() == [i for d in truth for i in [1, *d]]
  assert targets[:n].tolist() == [i for d in truth for i in [*d, 2]]
  assert not tokens[n:].any() and not targets[n:].any()
  assert len(batches) == math.ceil(n / (size * length))


@pytest.mark.parametrize("n_hosts", [2, 8])
def test_evaluation_is_shared_out_evenly(store, n_hosts):
  whole = list(pipeline.eval_batches(store.heldout, SIZE, 16, range(SIZE)))
  parts = [
    list(pipeline.eval_batches(store.heldout, SIZE, 16, rows))
    for rows in np.arange(SIZE).reshape(n_hosts, -1).tolist()
  ]
  assert {len(part) for part in parts} == {len(whole)}
  assert sha256(gathered(map(iter, parts), len(whole))) == sha256(whole)


def test_no_document_is_no_batch():
  assert not list(pipeline.eval_batches((), 2, 4, range(2)))


def test_ahead_gives_the_same_batches_and_the_state_of_those_taken(store):
  truth = take(stream(store), 12)
  with Prefetch(stream(store), 3) as ahead:
    assert ahead.state() == stream(store).state()
    made = take(ahead, 5)
    until(lambda: ahead._queue.full())
    state = ahead.state()
  resumed = stream(store)
  resumed.restore(state)
  assert sha256(made + take(resumed, 7)) == sha256(truth)


@pytest.mark.parametrize("weights", [(), (0.7, 0.3)])
@pytest.mark.parametrize("n_interleaved", [1, 3])
def test_the_documents_of_a_batch_are_named(two, weights, n_interleaved):
  """The names lead back to the texts, and the stream does not move."""
  folder = pathlib.Path(two.train[0].name).parent
  texts = {
    (f"{folder}/{name}.jsonl", f"{name}.jsonl:{i}"): json.loads(line)["text"]
    for name in "ab"
    for i, line in enumerate((folder / f"{name}.jsonl").open(), start=1)
  }
  config = Config(size=4, length=100, n_interleaved=n_interleaved)
  batches = stream(two, range(4), weights, config=config)
  for _ in range(40):
    state = json.loads(json.dumps(batches.state()))
    batch, named = next(batches), batches.documents(state)
    assert batches.documents(state) == named and sorted(named) == [0, 1, 2, 3]
    for row, origins in named.items():
      assert len(origins) == batch.segment_ids[row].max()
      for segment, origin in enumerate(origins, start=1):
        here = batch.tokens[row][batch.segment_ids[row] == segment]
        text = bytes((here[here > 2] - 3).astype(np.uint8)).decode()
        assert text in texts[origin.source, origin.name]
        corpus = next(c for c in two.train if c.name == origin.source)
        assert corpus.name_of(origin.split_index) == origin.name
  with Prefetch(batches, 2) as ahead:
    state = ahead.state()
    own = {k: v for k, v in state.items() if k in ("made_from", "2")}
    next(ahead)
    assert ahead.documents(own) == {2: ahead.documents(state)[2]}
  with pytest.raises(ValueError, match="seed was 3, is 4"):
    stream(two, seed=4, weights=weights, config=config).documents(state)


class Counter(TrainBatches):
  """Batches that hold 1, 2, 3, ...; slow, or breaking at a number."""

  def __init__(self, seconds=0.0, breaks_at=None):
    self.n_made, self._seconds, self._breaks_at = 0, seconds, breaks_at

  def __next__(self):
    time.sleep(self._seconds)
    self.n_made += 1
    if self.n_made == self._breaks_at:
      raise OSError("disk gone")
    batch = packing.blank(1, 1)
    batch.tokens[:] = self.n_made
    return batch

  def state(self):
    return {"n_made": self.n_made}


def until(condition, seconds=10.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.001)


def threads():
  return [t for t in threading.enumerate() if t.name == "prefetch"]


def test_only_so_many_batches_are_made_ahead():
  source = Counter()
  with Prefetch(source, 3) as ahead:
    until(lambda: source.n_made == 4)  # three wait, one is in hand
    time.sleep(0.05)
    assert source.n_made == 4
    assert int(next(ahead).tokens[0, 0]) == 1
    assert ahead.state() == {"n_made": 1}
    until(lambda: source.n_made == 5)


def test_only_batches_that_are_not_made_yet_are_waited_for():
  with Prefetch(Counter(seconds=0.02), 2) as slow:
    began = time.monotonic()
    take(slow, 5)
    assert 0.05 < time.monotonic() - began < 5
  source = Counter()
  with Prefetch(source, 2) as fast:
    until(lambda: source.n_made == 3)
    began = time.monotonic()
    next(fast)
    assert time.monotonic() - began < 0.05


def test_what_breaks_on_the_thread_reaches_the_consumer():
  ahead = Prefetch(Counter(breaks_at=3), 5)
  assert len(take(ahead, 2)) == 2
  with pytest.raises(OSError, match="disk gone") as caught:
    next(ahead)
  assert caught.traceback[-1].name == "__next__"  # where it broke
  assert ahead.state() == {"n_made": 2}
  assert not threads()


@pytest.mark.parametrize("n_taken", [0, 1, 7])
def test_closing_ends_the_thread_at_once(n_taken):
  source = Counter()
  ahead = Prefetch(source, 1)
  take(ahead, n_taken)
  until(lambda: source.n_made == n_taken + 2)  # it waits for room
  ahead.close()
  ahead.close()
  assert not threads()
  with pytest.raises(ValueError, match="closed"):
    next(ahead)


@pytest.mark.parametrize("name", ["size", "length", "n_ahead"])
def test_settings_that_cannot_be_meant(name):
  with pytest.raises(ValueError, match=f"{name}=0"):
    Config(**{name: 0})
