"""What is hidden is found again: nothing is lost, as much is hidden as is asked."""

import collections
import dataclasses
import itertools
import math

import numpy as np
import pytest

from data import corrupt, packing, pipeline, tokenizer
from data.corrupt import Config, Ids
from data.pipeline import TrainBatches
from data.tokenizer import BOS_ID, EOS_ID

VOCAB = 259  # of the store's tokenizer, bytes
IDS = Ids(VOCAB)


BYTES = tokenizer.train(tokenizer.Config(kind="bytes", vocab_size=VOCAB), [])


def noise(kind, paired=True, **numbers) -> corrupt.Noise:
  return corrupt.make(Config(kind=kind, **numbers), BYTES, paired)


def text(n: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(3, VOCAB, n).astype(np.int32)


def hidden(way, tokens, seed=0) -> corrupt.Pair:
  return way(tokens, np.random.default_rng(seed))


def spans(target) -> list[list[int]]:
  """The runs behind the sentinels of a target, in their order."""
  found = []
  for i in map(int, target):
    if i in IDS.sentinels:
      assert i == IDS.sentinels[len(found)]
      found.append([])
    else:
      found[-1].append(i)
  return found


def restored(pair) -> list[int]:
  """The text of a source and the spans that fill it."""
  runs, out = spans(pair.target), []
  for i in map(int, pair.source):
    out += runs.pop(0) if i in IDS.sentinels else [i]
  assert not runs
  return [i for i in out if i not in IDS.modes.values()]


# What each way does, by hand --------------------------------------------------


def test_spans_by_hand():
  """20 tokens, half of them hidden in spans of 5: two of them."""
  tokens = np.arange(10, 30, dtype=np.int32)
  pair = hidden(noise("spans", density=0.5, mean_span=5.0).ways[0], tokens)
  assert restored(pair) == tokens.tolist()
  first, second = spans(pair.target)
  assert len(first) + len(second) == 10
  s0, s1 = IDS.sentinels[:2]
  seen = [i for i in tokens.tolist() if i not in first + second]
  cut = seen.index(first[0] - 1) + 1
  assert pair.source.tolist() == [*seen[:cut], s0, *seen[cut:], s1]
  assert pair.target.tolist() == [s0, *first, s1, *second]


@pytest.mark.parametrize("n", [2, 3, 7, 64, 500, 3000])
@pytest.mark.parametrize(
  ("density", "mean_span"), [(0.15, 3.0), (0.5, 3.0), (0.5, 32.0), (0.01, 1.0)]
)
def test_spans_lose_nothing_and_hide_what_is_asked(n, density, mean_span):
  way = noise("spans", density=density, mean_span=mean_span).ways[0]
  pair = hidden(way, text(n), seed=n)
  assert restored(pair) == text(n).tolist()
  runs = spans(pair.target)
  n_hidden = sum(map(len, runs))
  assert n_hidden == min(max(round(n * density), 1), n - 1)
  wanted = min(max(round(n_hidden / mean_span), 1), n - n_hidden, 100)
  assert len(runs) == wanted and all(runs)
  assert (len(pair.source), len(pair.target)) == way.sizes(n)[:2]


def test_spans_lie_everywhere():
  """Each place but the first is hidden as often as the density says."""
  way, n, n_draws = noise("spans").ways[0], 40, 2000
  counts = np.zeros(n)
  for seed in range(n_draws):
    runs = spans(hidden(way, np.arange(10, 10 + n), seed).target)
    counts[[i - 10 for run in runs for i in run]] += 1
  # Six hidden tokens in two spans; the first place never is hidden, the last
  # one always, and the mean is exact.
  assert counts.sum() == 6 * n_draws
  assert counts[0] == 0 and counts[-1] == n_draws
  middle = counts[10:30] / n_draws
  expected = _expected_spans(n, 6, 2)[10:30]
  sigma = np.sqrt(expected * (1 - expected) / n_draws)
  assert (np.abs(middle - expected) < 4 * sigma).all()


def _expected_spans(n, n_hidden, n_spans):
  """How likely each place is hidden: over all ways to cut both into runs."""
  assert n_spans == 2
  counts, total = np.zeros(n), 0
  for a in range(1, n - n_hidden):
    for b in range(1, n_hidden):
      mask = np.zeros(n)
      mask[a : a + b] = 1
      mask[a + b + (n - n_hidden - a) :] = 1
      counts, total = counts + mask, total + 1
  return counts / total


def test_prefixes_are_cut_anywhere():
  way, n = noise("prefix").ways[0], 10
  cuts = collections.Counter()
  for seed in range(3000):
    pair = hidden(way, text(n), seed)
    assert [*pair.source, *pair.target] == text(n).tolist()
    cuts[len(pair.source)] += 1
  assert sorted(cuts) == list(range(1, n))
  sigma = math.sqrt(3000 * 1 / 9 * 8 / 9)
  assert all(abs(count - 3000 / 9) < 4 * sigma for count in cuts.values())


def parts(target) -> tuple[str, list[int], list[int], list[int]]:
  """The order of a text that was rearranged, and its three parts."""
  ids = target.tolist()
  pre, suf, mid = (ids.index(i) for i in IDS.parts)
  if suf == pre + 1:
    # What follows the last mark is the prefix and the middle.
    return "suffix", ids[mid + 1 :], [], ids[suf + 1 : mid]
  return "prefix", ids[pre + 1 : suf], ids[mid + 1 :], ids[suf + 1 : mid]


def test_a_middle_is_found_between_its_sides():
  way, n_draws = noise("middle", paired=False).ways[0], 2000
  orders = collections.Counter()
  for seed in range(n_draws):
    pair = hidden(way, text(30), seed)
    assert not len(pair.source)
    if len(pair.target) == 30:
      np.testing.assert_array_equal(pair.target, text(30))
      orders["plain"] += 1
      continue
    order, prefix, middle, suffix = parts(pair.target)
    assert prefix + middle + suffix == text(30).tolist()
    assert pair.closed and len(pair.target) == 33
    orders[order] += 1
  for name, share in (("plain", 0.5), ("prefix", 0.25), ("suffix", 0.25)):
    sigma = math.sqrt(n_draws * share * (1 - share))
    # An empty prefix in the one order reads as the other: as rare as 1 / 31.
    slack = n_draws / 4 / 10 if name != "plain" else 0
    assert abs(orders[name] - share * n_draws) < 3 * sigma + slack


def test_infill_hides_a_share_in_spans_of_poisson_lengths():
  way = noise("infill", permuted=False).ways[0]
  n_masks = n_hidden = 0
  n, n_draws = 400, 300
  for seed in range(n_draws):
    tokens = np.arange(n, dtype=np.int32) % 200 + 3
    pair = hidden(way, tokens, seed)
    np.testing.assert_array_equal(pair.target, tokens)
    seen = pair.source[pair.source != IDS.mask]
    assert _is_within(seen.tolist(), tokens.tolist())
    assert n - len(seen) == round(0.3 * n)  # the density, exactly
    assert len(pair.source) <= n
    n_masks += int((pair.source == IDS.mask).sum())
    n_hidden += n - len(seen)
  # The last span of a text is cut short: by half a span of 3 in the mean.
  mean, sigma = n_hidden / n_masks, math.sqrt(3 / n_masks)
  assert 3 - 3 * sigma - 3 * n_draws / n_masks < mean < 3 + 3 * sigma


def _is_within(part, whole) -> bool:
  """Whether `part` is `whole` with some left out, in order."""
  rest = iter(whole)
  return all(i in rest for i in part)


def test_sentences_come_in_any_order():
  sentences = [b"one two.", b" three four five!", b" six?", b"\n", b" seven"]
  tokens = np.frombuffer(b"".join(sentences), np.uint8).astype(np.int32) + 3
  way = noise("infill", density=0.0).ways[0]
  orders = set()
  for seed in range(300):
    pair = hidden(way, tokens, seed)
    np.testing.assert_array_equal(pair.target, tokens)
    read, order = bytes(np.uint8(pair.source - 3)), []
    while read:
      (found,) = [i for i, s in enumerate(sentences) if read.startswith(s)]
      order.append(found)
      read = read[len(sentences[found]) :]
    orders.add(tuple(order))
  assert sorted(order) == [0, 1, 2, 3, 4]
  assert 100 < len(orders) <= 120


def test_ul2_draws_its_seven_ways_alike():
  made, n_draws = noise("ul2", paired=False), 420
  modes = collections.Counter()
  names = {i: name for name, i in IDS.modes.items()}
  for i in range(n_draws):
    pair, n = made.draw(text(100), (0, i), 1000, 0)
    assert n == 100
    mode = names[int(pair.source[0])]
    if mode == "S":
      assert [*pair.source[1:], *pair.target] == text(100).tolist()
      n_hidden = len(pair.target)
    else:
      assert restored(pair) == text(100).tolist()
      n_hidden = sum(map(len, spans(pair.target)))
    modes[mode, n_hidden] += 1
  wanted = {("S", 25): 1, ("R", 15): 2, ("X", 15): 1, ("X", 50): 3}
  assert modes.keys() == wanted.keys()
  for key, n in wanted.items():
    sigma = math.sqrt(n_draws * n / 7 * (1 - n / 7))
    assert abs(modes[key] - n_draws * n / 7) < 3 * sigma, key


# Rows -------------------------------------------------------------------------

SIZE = 8
KINDS = {  # name -> a config of rows
  "spans": dict(noise=Config(kind="spans"), source_length=48, length=24),
  "infill": dict(noise=Config(kind="infill"), source_length=48, length=48),
  "prefixes": dict(noise=Config(kind="prefix"), source_length=40, length=40),
  "prefix": dict(noise=Config(kind="prefix"), length=48),
  "middle": dict(noise=Config(kind="middle"), length=48),
  "ul2": dict(noise=Config(kind="ul2"), length=64),
  "ul2_pairs": dict(noise=Config(kind="ul2"), source_length=48, length=48),
}


def stream(store, name, rows=range(SIZE), seed=3, **changes) -> TrainBatches:
  config = pipeline.Config(size=SIZE, **{**KINDS[name], **changes})
  made = config.noise_of(store.tokenizer)
  return pipeline.train_batches(config, store.train, (), rows, seed, made)


def leaves(batch) -> dict[str, np.ndarray]:
  """All arrays of a batch."""
  found = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
  if batch.source is not None:
    source = found.pop("source")
    found |= {
      f"source.{f.name}": getattr(source, f.name)
      for f in dataclasses.fields(source)
    }
  return {name: x for name, x in found.items() if x is not None}


def assert_same(ours, theirs, rows=slice(None)):
  ours, theirs = leaves(ours), leaves(theirs)
  assert ours.keys() == theirs.keys()
  for name, x in ours.items():
    np.testing.assert_array_equal(x, theirs[name][rows], err_msg=name)


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_the_same_on_any_hosts_and_after_any_resume(store, name):
  """D1, D2: of texts that are hidden in part."""
  whole = list(itertools.islice(stream(store, name), 9))
  for rows in ([0, 1, 2, 3], [4, 5], [7]):
    part = stream(store, name, rows)
    for batch in whole[:5]:
      assert_same(next(part), batch, rows)
  for n in (1, 4):
    first = stream(store, name)
    for _ in range(n):
      next(first)
    again = stream(store, name)
    again.restore(first.state())
    for batch in whole[n : n + 3]:
      assert_same(next(again), batch)
  other = stream(store, name, seed=4)
  assert any(
    (x != leaves(whole[0])[key]).any() for key, x in leaves(next(other)).items()
  )


@pytest.mark.parametrize("name", ["spans", "prefix", "prefixes"])
def test_documents_are_read_whole_from_their_rows(store, name):
  """Nothing is lost but a last token that is left alone."""
  batches, found = list(itertools.islice(stream(store, name, [0]), 60)), []
  for batch in batches:
    for segment in range(1, int(batch.segment_ids.max()) + 1):
      here = batch.segment_ids[0] == segment
      assert batch.tokens[0][here][0] == BOS_ID
      sequence = [*batch.tokens[0][here], batch.targets[0][here][-1]][1:]
      if batch.source is None:
        n_seen = int(batch.prefix[0][here][0])
        np.testing.assert_array_equal(
          batch.weights[0][here], np.arange(here.sum()) >= n_seen - 1
        )
      else:
        there = batch.source.segment_ids[0] == segment
        read = batch.source.tokens[0][there]
        assert read[-1] == EOS_ID and EOS_ID not in read[:-1]
        np.testing.assert_array_equal(
          batch.source.positions[0][there], np.arange(there.sum())
        )
        assert batch.weights[0][here].all()
        if name == "spans":
          assert sequence[-1] == EOS_ID
          target = np.array(sequence[:-1])
          sequence = restored(corrupt.Pair(read[:-1], target, True))
        else:
          sequence = [*read[:-1], *sequence]
      found.append([int(i) for i in sequence if i != EOS_ID])
  # Rows read every eighth document of the shuffle, in pieces.
  order = pipeline.mixture.shuffled(store.train, (), 3)
  rest = list(itertools.chain.from_iterable(found))
  for index in itertools.count(0, SIZE):
    document = order[index].tolist()
    n = len(document) if rest[: len(document)] == document else -1
    if n < 0:  # the last token was left alone
      n = len(document) - 1
    if len(rest) < len(document):
      break
    assert rest[:n] == document[:n]
    rest = rest[n:]
  assert index > 5 * SIZE


@pytest.mark.parametrize(
  ("name", "share"), [("prefix", 0.9), ("middle", 0.9), ("spans", 0.7)]
)
def test_rows_are_filled(store, name, share):
  """Of a row, less than 16 tokens are left; of pairs, of either."""
  batches = list(itertools.islice(stream(store, name, length=256), 20))
  used = np.mean([(b.segment_ids > 0).mean() for b in batches])
  if name == "spans":
    used = np.mean([(b.source.segment_ids > 0).mean() for b in batches])
  assert used > share


def test_heldout_texts_come_once_on_any_hosts(store):
  config = pipeline.Config(size=4, **KINDS["spans"])
  made = config.noise_of(store.tokenizer)

  def batches(rows):
    return list(pipeline.paired_eval_batches(config, store.heldout, rows, made))

  whole, half = batches(range(4)), batches([1, 3])
  assert len(whole) == len(half) > 1
  for ours, batch in zip(half, whole, strict=True):
    assert_same(ours, batch, [1, 3])
  n_tokens = sum(int((b.source.tokens >= 3).sum()) for b in whole)
  n_tokens += sum(int((b.targets >= 3).sum()) for b in whole)
  n_sentinels = sum(int((b.targets >= VOCAB).sum()) for b in whole)
  wanted = sum(len(c[i]) for c in store.heldout for i in range(len(c)))
  n_documents = sum(map(len, store.heldout))
  assert wanted - n_documents <= n_tokens - 2 * n_sentinels <= wanted


def test_a_place_is_refused_by_another_noise(store):
  """D3."""
  state = stream(store, "spans").state()
  other = stream(store, "spans", noise=Config(kind="spans", density=0.3))
  with pytest.raises(ValueError, match=r"batch\.noise was"):
    other.restore(state)
  plain = TrainBatches(
    pipeline.Config(size=SIZE, length=24), store.train, (), range(8), 3, None
  )
  with pytest.raises(ValueError, match="belongs to another stream"):
    plain.restore(state)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(source_length=8), "source_length=8 with noise=None"),
    (
      dict(noise={"kind": "infill"}),
      "noise.kind='infill' asks for the whole text",
    ),
    (
      dict(noise={"kind": "middle"}, source_length=8),
      "source_length=8 with noise.kind='middle'",
    ),
    (
      dict(noise={"kind": "spans"}, packing="stream"),
      "packing='stream' with noise.kind='spans'",
    ),
  ],
)
def test_rows_that_cannot_be_are_told(changes, said):
  if "noise" in changes:
    changes = {**changes, "noise": Config(**changes["noise"])}
  with pytest.raises(ValueError, match=said):
    pipeline.Config(**changes)


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    (dict(kind="prefix", density=0.2), "density=0.2 says nothing to kind=pref"),
    (dict(kind="spans", share=0.2), "take middle"),
    (dict(kind="spans", mean_span=0.5), "mean_span=0.5: spans are of one"),
  ],
)
def test_noise_that_cannot_be_is_told(settings, said):
  with pytest.raises(ValueError, match=said):
    Config(**settings)


def test_rows_without_room_are_told(store):
  with pytest.raises(ValueError, match="no room for 16 tokens"):
    stream(store, "spans", source_length=12)


def test_ids_above_the_tokenizer_are_spelt():
  ids = [*b"ab", IDS.sentinels[3], *b"c", IDS.mask, IDS.parts[1]]
  ids = [i + 3 if i < 256 else i for i in ids]
  assert corrupt.decode(BYTES, ids) == "ab<3>c<mask><suffix>"


def test_a_packer_of_noise_counts_as_a_packer_does(store):
  packer = packing.NoisyPacker([text(5), text(1), text(9)], noise("spans"), 0)
  batch = pipeline.Config(size=1, **KINDS["spans"]).blank(1)
  assert packer.fill(batch, 0) == [0, 2] and packer.exhausted
  assert batch.segment_ids.max() == 2
