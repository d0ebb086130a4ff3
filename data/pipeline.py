"""A store to batches: shuffled, mixed, packed, resumable, the same everywhere.

Row r of every batch is a stream of its own: it packs documents r, r + B,
r + 2B, ... of one global shuffle. A host makes the rows that its devices hold
and no others, so the global batch does not depend on the number of hosts, and a
run may resume on another number: it reads other rows of the same state.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from configs import fields
from configs.ranges import Count, Natural
from data import corrupt, example, mixture, packing, store
from data import tokenizer as tokenizers
from data.batch import Batch

N_COMPARED = 16  # documents by whose order two streams are told apart
State = dict[str, Any]  # plain JSON: row -> place, and "made_from"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The shape of a batch and how it is filled."""

  size: Count = 32  # rows in the global batch
  length: Count = 256  # tokens in a row
  # "segments": a token sees its own document only. "stream": all before it.
  # "pairs": two texts side by side, for BERT. "whole": examples are not parted.
  packing: Literal["segments", "stream", "pairs", "whole"] = "segments"
  n_interleaved: Count = 1  # documents that a row reads in turn, a row of each
  n_ahead: Count = 4  # batches that are made while the devices work
  noise: corrupt.Config | None = None  # what of the texts is hidden
  # Tokens in a row of what an encoder reads; 0: nothing does.
  source_length: Natural = 0

  def __post_init__(self):
    fields.check(self)
    if self.packing == "pairs" and self.length < packing.ROOM:
      raise ValueError(
        f"length={self.length} with packing='pairs': a row has no room for a "
        f"pair. Give {packing.ROOM} or more."
      )
    if self.source_length and self.noise is None and self.packing != "whole":
      raise ValueError(
        f"source_length={self.source_length} with noise=None: what an encoder "
        'reads is text of which something is hidden. Give noise.kind="spans" or '
        'another; or, of records with a text to read, packing="whole".'
      )
    if self.noise is None:
      return
    if self.packing != "segments":
      raise ValueError(
        f"packing={self.packing!r} with noise.kind={self.noise.kind!r}: a part "
        'of a text that was hidden is found in it alone. Give "segments".'
      )
    if self.noise.kind == "infill" and not self.source_length:
      raise ValueError(
        "noise.kind='infill' asks for the whole text again, of families that "
        "read another one: give source_length, or kind='spans'."
      )
    if self.noise.kind == "middle" and self.source_length:
      raise ValueError(
        f"source_length={self.source_length} with noise.kind='middle': there is "
        "one text, and no family reads another. Give source_length=0."
      )

  @property
  def sees_sources(self) -> bool:
    """Whether sources lie in the rows, ahead of what is asked for."""
    hides = self.noise is not None and self.noise.kind != "middle"
    return hides and not self.source_length

  def blank(self, n_rows: int) -> Batch:
    """Rows of padding, of the shapes that a batch of this config has."""
    return packing.blank(
      n_rows,
      self.length,
      self.source_length,
      paired=self.packing == "pairs",
      sees_sources=self.sees_sources,
    )

  def noise_of(self, tokenizer: tokenizers.Tokenizer) -> corrupt.Noise | None:
    """What hides a part of texts of a tokenizer, if anything does.

    Raises:
      ValueError: rows have no room for it.
    """
    if self.noise is None:
      return None
    made = corrupt.make(self.noise, tokenizer, self.source_length > 0)
    made.check(self.length, self.source_length)
    return made


PACKERS = {"pairs": packing.PairPacker, "whole": packing.WholePacker}


class Origin(NamedTuple):
  """The document that a segment of a row is a part of."""

  source: str  # as in data.sources
  split_index: int  # of the document in its split of that source
  name: str  # within the source: "json/decoder.py"; "web.jsonl:12" is line 12

  def __str__(self) -> str:
    return f"{self.name} of {self.source} (number {self.split_index})"


def train_batches(
  config: Config,
  corpora: Sequence[store.Corpus],
  weights: Sequence[float],
  rows: Sequence[int],
  seed: int,
  noise: corrupt.Noise | None = None,
) -> "TrainBatches":
  """An endless iterator of the given rows of every global batch.

  Args:
    config: size and length of the global batch.
    corpora: the train splits of one store, or of several.
    weights: the share of tokens of each corpus; () takes them as they are.
    rows: the indices of this host's rows, in the order that it wants them.
    seed: of the shuffle, and of the noise.
    noise: what hides a part of the texts: `config.noise_of`.

  Raises:
    ValueError: if the corpora were made by different tokenizers, or examples
      would be parted.
  """
  parted = [corpus.name for corpus in corpora if corpus.is_examples]
  if parted and config.packing != "whole":
    raise ValueError(
      f"batch.packing={config.packing!r} parts documents at the ends of rows, and"
      f" those of {', '.join(parted)} are examples: give batch.packing='whole'."
    )
  if len({corpus.tokenizer for corpus in corpora}) > 1:
    made = ", ".join(f"{c.name} by {c.tokenizer[:12]}" for c in corpora)
    raise ValueError(
      f"These corpora were made by different tokenizers: {made}. Prepare them"
      ' with one (tokenizer.kind="saved").'
    )
  return TrainBatches(config, corpora, weights, rows, seed, noise)


class TrainBatches:
  """The iterator of `train_batches`: its state is small and plain JSON."""

  def __init__(self, config, corpora, weights, rows, seed, noise):
    self._corpora = corpora
    self._documents = mixture.shuffled(corpora, weights, seed)
    make, args = PACKERS.get(config.packing, packing.Packer), ()
    if config.source_length:
      make = packing.ApartPacker
    if config.packing == "pairs":
      args = (seed,)
    if noise is not None:
      make, args = packing.NoisyPacker, (noise, seed)
    self._make = functools.partial(
      make, self._documents, *args, ends=corpora[0].ends
    )
    self._config, self._rows = config, list(rows)
    self._packers = [self._packer(row) for row in rows]
    self._made_from = {
      "data": _digest(corpus.fingerprint for corpus in corpora),
      # What a library or a change of this program could make another.
      "order": _digest(map(self._documents.place, range(N_COMPARED))),
      "data.weights": list(weights),
      "batch.size": config.size,
      "batch.length": config.length,
      "batch.packing": config.packing,
      "batch.n_interleaved": config.n_interleaved,
      "batch.source_length": config.source_length or None,
      "batch.noise": noise and noise.made_from,
      "seed": seed,
    }

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    batch = self._config.blank(len(self._rows))
    for i, packer in enumerate(self._packers):
      packer.fill(batch, i)
    if self._config.packing == "stream":
      batch = _joined(batch)
    return batch

  def state(self) -> State:
    """Where this host's rows are, and what they are rows of.

    The states that the hosts took after one step unite, as dicts, into one that
    any number of hosts can restore.
    """
    rows = zip(self._rows, self._packers, strict=True)
    places = {str(row): packer.state for row, packer in rows}
    return places | {"made_from": self._made_from}

  def documents(self, state: State) -> dict[int, list[Origin]]:
    """Names the documents of the batch that follows a state.

    For people: which texts a bad batch was made of. The stream goes on where
    it is, and the state may be any that `restore` would take: of this host's
    rows, or of those of all hosts.

    Returns:
      Row of the global batch -> the document of each of its segments, in order
      (segment_ids 1, 2, ...), for the rows that are in the state.
    """
    self._check(state)
    named = {}
    for row in sorted(int(key) for key in state if key != "made_from"):
      packer = self._packer(row)
      packer.state = state[str(row)]
      indices = packer.fill(self._config.blank(1), 0)
      named[row] = [self._origin(index) for index in indices]
    return named

  def restore(self, state: State) -> None:
    """Goes on where a state was taken; more rows than this host's may be in it.

    Raises:
      ValueError: if the state is of other data or settings, or lacks a row.
    """
    self._check(state)
    missing = [row for row in self._rows if str(row) not in state]
    if missing:
      raise ValueError(
        f"The checkpoint's data state lacks rows {missing[:8]} of the batch:"
        " the files of some hosts are missing from its folder data/."
      )
    for row, packer in zip(self._rows, self._packers, strict=True):
      packer.state = state[str(row)]

  def _check(self, state: State) -> None:
    made_from = state["made_from"]
    differences = [
      f"{key} was {made_from.get(key)}, is {value}"
      for key, value in self._made_from.items()
      if made_from.get(key) != value
    ]
    if differences:
      raise ValueError(
        "The checkpoint's data state belongs to another stream of batches:"
        f" {'; '.join(differences)}. Resume with what the run was started"
        " with, or start anew in another workdir."
      )

  def _packer(self, row: int) -> packing.Interleaved:
    config = self._config
    return packing.Interleaved(
      self._make, row, config.size, config.n_interleaved
    )

  def _origin(self, index: int) -> Origin:
    part, place = self._documents.place(index)
    corpus = self._corpora[part]
    return Origin(corpus.name, place, corpus.name_of(place))


def eval_batches(
  corpora: Sequence[store.Corpus],
  size: int,
  length: int,
  rows: Sequence[int],
) -> Iterator[Batch]:
  """Yields every document once, in order; rows of the last batch may be empty.

  The documents lie end to end whatever the batch's size, so that a loss over
  them is the same for every size and number of hosts; where any are examples,
  all are kept whole. Every host steps as often. Rows without a document have no
  weight.
  """
  if not corpora:
    return
  if any(corpus.is_examples for corpus in corpora):
    yield from _whole_batches(corpora, size, length, rows)
    return
  packer = packing.Packer(mixture.joined(corpora), ends=corpora[0].ends)
  # Targets of all documents up to each: where a row begins is known from the
  # lengths, so that a host reads what its own rows hold and no more.
  lengths = [np.zeros(1, np.int64), *(c.lengths + 1 for c in corpora)]
  borders = np.concatenate(lengths).cumsum()
  for first in range(0, int(borders[-1]), size * length):
    batch = packing.blank(len(rows), length)
    for i, row in enumerate(rows):
      start = first + row * length
      document = int(np.searchsorted(borders, start, "right")) - 1
      packer.state = (document, start - int(borders[document]))
      packer.fill(batch, i)
    yield batch


def paired_eval_batches(
  config: Config,
  corpora: Sequence[store.Corpus],
  rows: Sequence[int],
  noise: corrupt.Noise | None,
) -> Iterator[Batch]:
  """As `eval_batches`, of texts of which a part is hidden, or of two texts.

  What is hidden depends on a document's place alone. How much a row holds is
  known once it is made: every host makes the rows of all, and keeps its own.
  """
  documents = mixture.joined(corpora)
  if noise is None:
    packer = packing.ApartPacker(documents)
  else:
    packer = packing.NoisyPacker(documents, noise, seed=0)
  places = {row: i for i, row in enumerate(rows)}
  while not packer.exhausted:
    batch = config.blank(len(places))
    for row in range(config.size):
      if row in places:
        packer.fill(batch, places[row])
      else:
        packer.fill(config.blank(1), 0)
    yield batch


def _whole_batches(
  corpora: Sequence[store.Corpus], size: int, length: int, rows: Sequence[int]
) -> Iterator[Batch]:
  """`eval_batches` of whole documents, one behind the other while they fit."""
  documents, filled = mixture.joined(corpora), length
  made: list[list[tuple[int, int]]] = []  # row -> document, first token
  sizes = itertools.chain.from_iterable(
    ((int(n) + (not c.is_examples), c.is_examples) for n in c.lengths)
    for c in corpora
  )
  for index, (n_tokens, is_example) in enumerate(sizes):
    for start in range(0, length if is_example else n_tokens, length):
      n = min(n_tokens - start, length)
      if filled + n > length:
        made.append([])
        filled = 0
      made[-1].append((index, start))
      filled += n
  for first in range(0, len(made), size):
    batch = packing.blank(len(rows), length)
    for i, row in enumerate(rows):
      at, pieces = 0, made[first + row : first + row + 1]
      for segment, (index, start) in enumerate(sum(pieces, []), start=1):
        whole = example.of(documents[index], corpora[0].ends)
        piece = packing.piece_of(whole, start, length)
        packing.place(batch, i, at, segment, piece)
        at += len(piece.tokens)
    yield batch


def n_cut(corpora: Sequence[store.Corpus], config: Config) -> tuple[int, int]:
  """Examples that are longer than a row, whose ends are lost, and examples."""
  length, n_read = config.length, config.source_length
  if n_read and config.noise is None:
    pairs = (packing.parted(c[i]) for c in corpora for i in range(len(c)))
    is_cut = [len(s) > n_read or len(t.tokens) > length for s, t in pairs]
    return sum(is_cut), len(is_cut)
  lengths = [corpus.lengths for corpus in corpora if corpus.is_examples]
  joined = np.concatenate([np.zeros(0, np.int64), *lengths])
  return int((joined > length).sum()), len(joined)


class Prefetch:
  """Makes batches ahead on a thread.

  `state()` is that of the batch last handed out, not of the last one made.
  """

  def __init__(self, batches: TrainBatches, n_ahead: int):
    self._batches, self._state = batches, batches.state()
    self._queue: queue.Queue = queue.Queue(n_ahead)
    self._closed = threading.Event()
    self._thread = threading.Thread(
      target=self._work, name="prefetch", daemon=True
    )
    self._thread.start()

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    if self._closed.is_set():
      raise ValueError("Prefetch is closed: no batch can be taken from it.")
    batch, state, error = self._queue.get()
    if error:
      self.close()
      raise error
    self._state = state
    return batch

  def state(self) -> State:
    """The state to resume with after the batches taken so far."""
    return self._state

  def documents(self, state: State) -> dict[int, list[Origin]]:
    """Names the documents of the batch that follows a state of this stream."""
    return self._batches.documents(state)

  def close(self) -> None:
    """Ends the thread; batches that were made but not taken are dropped."""
    self._closed.set()
    while not self._queue.empty():  # frees a thread that waits for room
      self._queue.get_nowait()
    self._thread.join()

  def __enter__(self) -> "Prefetch":
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def _work(self) -> None:
    try:
      for batch in self._batches:
        self._queue.put((batch, self._batches.state(), None))
        if self._closed.is_set():
          return
      raise StopIteration
    except Exception as error:  # handed to the thread that consumes
      self._queue.put((None, None, error))


def _joined(batch: Batch) -> Batch:
  """One segment a row: documents see those before them."""
  positions = np.broadcast_to(
    np.arange(batch.tokens.shape[1], dtype=np.int32), batch.tokens.shape
  )
  return batch.replace(
    segment_ids=np.ones_like(batch.segment_ids), positions=positions
  )


def _digest(parts: Iterable[Any]) -> str:
  return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()
