"""Documents end to end, cut into rows: full rows, and no token lost.

A document is BOS, its ids, EOS. Its tokens are all but the last of them and its
targets all but the first, so each target is predicted exactly once, EOS too.
A document that does not fit continues in the packer's next row, as a segment
of its own with positions from 0: a position embedding of T entries suffices.

Whole, no example is parted: what does not fit waits for the next row, and only
what is longer than a row is cut. A plain text goes in pieces of a row then.

In pairs (BERT, arXiv 1810.04805) a segment is BOS, a part of a document, EOS,
what follows or a part of another document, EOS. Nothing is shifted: the target of
its first token is 1 where the second part comes from elsewhere.

Apart (T5, BART) a segment is the text that an example asks for, and the segment
of the same number in the row of sources the text that it is about.

Where a part of the texts is hidden (data/corrupt.py), a segment is what was made
of a part of a document, as long as the row has room for, and begins with BOS.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data import example
from data.batch import Batch, Source
from data.corrupt import Noise, Pair
from data.example import Example
from data.tokenizer import BOS_ID, EOS_ID, PAD_ID

ENDS = (BOS_ID, EOS_ID)  # of a document, where its tokenizer has no others
N_HELD = 16  # documents that wait for a row with room for them as a whole
ROOM = 16  # tokens that a row has left for a pair, or is full


def blank(
  size: int,
  length: int,
  source_length: int = 0,
  *,
  paired: bool = False,
  sees_sources: bool = False,
) -> Batch:
  """A batch of padding, to be filled.

  Args:
    size: rows.
    length: tokens of a row.
    source_length: tokens of a row of sources; 0: there are none.
    paired: whether two texts of a segment are told apart.
    sees_sources: whether sources lie in the rows and are seen whole.
  """
  shape, source = (size, length), None
  if source_length:
    read = (size, source_length)
    source = Source(*(np.full(read, i, np.int32) for i in (PAD_ID, 0, 0)))
  return Batch(
    source=source,
    prefix=np.zeros(shape, np.int32) if sees_sources else None,
    tokens=np.full(shape, PAD_ID, np.int32),
    targets=np.full(shape, PAD_ID, np.int32),
    weights=np.zeros(shape, np.float32),
    segment_ids=np.zeros(shape, np.int32),
    positions=np.zeros(shape, np.int32),
    types=np.zeros(shape, np.int32) if paired else None,
  )


def place(
  batch: Batch, row: int, filled: int, segment: int, piece: Example
) -> None:
  """Writes a piece of a document behind what a row holds."""
  n = len(piece.tokens)
  here = np.s_[row, filled : filled + n]
  batch.tokens[here] = piece.tokens
  batch.targets[here] = piece.targets
  batch.weights[here] = piece.weights
  batch.segment_ids[here] = segment
  batch.positions[here] = np.arange(n)


def place_source(
  batch: Batch, row: int, filled: int, segment: int, read: np.ndarray
) -> None:
  """Writes what an encoder reads behind what a row of sources holds."""
  here = np.s_[row, filled : filled + len(read)]
  batch.source.tokens[here] = read
  batch.source.segment_ids[here] = segment
  batch.source.positions[here] = np.arange(len(read))


def piece_of(whole: Example, start: int, n: int) -> Example:
  """The tokens of an example from there on, at most n."""
  return Example(*(x[start : start + n] for x in whole))


def begun(batch: Batch, start_id: int) -> Batch:
  """The same texts, which begin with what a model of two texts begins them with."""
  is_first = (batch.positions == 0) & (batch.segment_ids > 0)
  return batch.replace(tokens=np.where(is_first, start_id, batch.tokens))


def parted(whole: Example) -> tuple[np.ndarray, Example]:
  """What is read of an example of two texts, and what is written."""
  n_read = int(whole.weights.argmax())
  written = piece_of(whole, n_read, len(whole.tokens))
  return whole.tokens[:n_read], written


class Packer:
  """Reads a sequence of documents and fills one row after the other.

  Its state is two numbers: the document, and the targets of it that are used.
  """

  def __init__(
    self,
    documents: Sequence,
    first: int = 0,
    step: int = 1,
    ends: tuple[int, int] = ENDS,
  ):
    """Reads documents first, first + step, ... of a sequence."""
    self._documents, self._first, self._step = documents, first, step
    self._ends = ends
    self._n_done = -1
    self.state = (0, 0)

  @property
  def state(self) -> tuple:
    """(documents done, targets used of the next one)."""
    return self._n_done, self._offset

  @state.setter
  def state(self, state: tuple) -> None:
    n_done, self._offset = state
    if n_done != self._n_done:
      self._read = None  # the document, once it is read
    self._n_done = n_done

  @property
  def exhausted(self) -> bool:
    """Whether a finite sequence has no document left."""
    return self._index >= len(self._documents)

  def fill(self, batch: Batch, row: int) -> list[int]:
    """Writes one row; it ends in padding only where the documents end.

    Returns:
      The index of each segment's document.
    """
    indices = []
    filled, segment, length = 0, 1, batch.tokens.shape[1]
    while filled < length and not self.exhausted:
      if self._read is None:
        self._read = example.of(self._documents[self._index], self._ends)
      indices.append(self._index)
      piece = piece_of(self._read, self._offset, length - filled)
      place(batch, row, filled, segment, piece)
      filled, segment = filled + len(piece.tokens), segment + 1
      self._offset += len(piece.tokens)
      if self._offset == len(self._read.tokens):
        self.state = (self._n_done + 1, 0)
    return indices

  @property
  def _index(self) -> int:
    return self._first + self._n_done * self._step


class Filled(NamedTuple):
  """Tokens that a row holds, and that its row of sources does."""

  n: int
  n_read: int


class WholePacker(Packer):
  """Fills rows with documents that fit them; those that do not wait.

  Its state also has those that wait, each with the targets used of it.
  """

  @property
  def state(self) -> tuple:
    """(documents done, targets used of the next one, those that wait)."""
    return self._n_done, self._offset, [[*place] for place in self._held]

  @state.setter
  def state(self, state: tuple) -> None:
    n_done, self._offset, *held = state
    self._held = [tuple(place) for place in (held[0] if held else [])]
    self._n_done = n_done
    self._known: dict[int, Example] = {}  # the documents that wait

  @property
  def exhausted(self) -> bool:
    """Whether a finite sequence has no document left."""
    return not self._held and self._index >= len(self._documents)

  def fill(self, batch: Batch, row: int) -> list[int]:
    """Writes one row, as `Packer.fill` does; padding is what no waiting fits."""
    indices: list[int] = []
    filled, length = Filled(0, 0), batch.tokens.shape[1]

    def fits(index: int, start: int) -> bool:
      nonlocal filled
      found = self._put(batch, row, filled, len(indices) + 1, index, start)
      if found is None:
        return False
      indices.append(index)
      filled = found
      return True

    self._held = [waiting for waiting in self._held if not fits(*waiting)]
    while filled.n < length and len(self._held) < N_HELD:
      if self._index >= len(self._documents):
        break
      following = self._next(length)
      if not fits(*following):
        self._held.append(following)
    waiting = {index for index, _ in self._held} | {self._index}
    self._known = {i: x for i, x in self._known.items() if i in waiting}
    return indices

  def _put(
    self,
    batch: Batch,
    row: int,
    filled: Filled,
    segment: int,
    index: int,
    start: int,
  ) -> Filled | None:
    """Writes a document behind what a row holds; None: it has no room."""
    length = batch.tokens.shape[1]
    piece = piece_of(self._document(index), start, length)
    end = filled.n + len(piece.tokens)
    if end > length:
      return None
    place(batch, row, filled.n, segment, piece)
    return Filled(end, 0)

  def _next(self, length: int) -> tuple[int, int]:
    """The next document, or piece of a plain text, that no row has had."""
    index, start = self._index, self._offset
    n_tokens = len(self._document(index).tokens)
    is_text = not isinstance(self._documents[index], Example)
    if is_text and start + length < n_tokens:
      self._offset += length
    else:
      self._n_done, self._offset = self._n_done + 1, 0
    return index, start

  def _document(self, index: int) -> Example:
    if index not in self._known:
      self._known[index] = example.of(self._documents[index], self._ends)
    return self._known[index]


class ApartPacker(WholePacker):
  """The same of examples of two texts; both have to fit.

  Of a source that is longer than a row the end stays, which says that it ends.
  """

  def _put(
    self,
    batch: Batch,
    row: int,
    filled: Filled,
    segment: int,
    index: int,
    start: int,
  ) -> Filled | None:
    length, source_length = batch.tokens.shape[1], batch.source.tokens.shape[1]
    read, written = parted(self._document(index))
    if len(read) > source_length:
      read = np.concatenate([read[: source_length - 1], read[-1:]])
    written = piece_of(written, 0, length)
    end = Filled(filled.n + len(written.tokens), filled.n_read + len(read))
    if end.n > length or end.n_read > source_length:
      return None
    place(batch, row, filled.n, segment, written)
    place_source(batch, row, filled.n_read, segment, read)
    return end


class PairPacker(Packer):
  """Fills rows with pairs of texts, half of them from two documents.

  Its state too is two numbers: the document, and the tokens of it that are
  used. A last token that is left alone is passed over.
  """

  def __init__(
    self,
    documents: Sequence,
    seed: int,
    first: int = 0,
    step: int = 1,
    ends: tuple[int, int] = ENDS,
  ):
    """Reads documents first, first + step, ... of a sequence."""
    super().__init__(documents, first, step, ends)
    self._bos, self._eos = (np.array([i], np.int32) for i in ends)
    self._seed = seed

  def fill(self, batch: Batch, row: int) -> list[int]:
    """Writes one row, as `Packer.fill` does; the rest of it is padding."""
    indices: list[int] = []
    filled, length = 0, batch.tokens.shape[1]
    while not self.exhausted and length - filled >= ROOM:
      if self._read is None:
        self._read = self._documents[self._index]
      rest = self._read[self._offset :]
      if len(rest) < 2:
        self.state = (self._n_done + 1, 0)
        continue
      n = min(len(rest), length - filled - 3)
      first, second, foreign = self._draw(rest[:n])
      indices.append(self._index)
      pair = np.concatenate([self._bos, first, self._eos, second, self._eos])
      here = np.s_[row, filled : filled + len(pair)]
      batch.tokens[here] = pair
      batch.targets[row, filled] = foreign
      batch.weights[here] = 1
      batch.segment_ids[here] = len(indices)
      batch.positions[here] = np.arange(len(pair))
      batch.types[here] = np.arange(len(pair)) >= len(first) + 2
      filled += len(pair)
      self._offset += len(first) if foreign else n
    return indices

  def _draw(self, text: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Cuts a text in two, and may put another in the place of the second."""
    place = self._seed, self._index, self._offset
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(place)))
    cut = int(rng.integers(1, len(text)))
    first, second = text[:cut], text[cut:]
    if rng.random() < 0.5:
      return first, second, False
    # Documents come in a random order: those ahead are as good as any.
    ahead = self._index + int(rng.integers(1, 1000))
    other = self._documents[ahead % len(self._documents)]
    same = len(other) == len(self._read) and (other == self._read).all()
    if same or not len(other):
      return first, second, False
    start = int(rng.integers(max(len(other) - len(second), 0) + 1))
    return first, other[start : start + len(second)], True


class NoisyPacker(Packer):
  """Fills rows with what a noise makes of the documents.

  Its state too is two numbers: the document, and the tokens of it that are
  used. A last token that is left alone is passed over: nothing of it could be
  hidden.
  """

  def __init__(
    self,
    documents: Sequence,
    noise: Noise,
    seed: int,
    first: int = 0,
    step: int = 1,
    ends: tuple[int, int] = ENDS,
  ):
    """Reads documents first, first + step, ... of a sequence."""
    super().__init__(documents, first, step, ends)
    self._bos, self._eos = (np.array([i], np.int32) for i in ends)
    self._noise, self._seed = noise, seed

  def fill(self, batch: Batch, row: int) -> list[int]:
    """Writes one row, as `Packer.fill` does; the rest of it is padding."""
    indices: list[int] = []
    n_written = n_read = 0
    length = batch.tokens.shape[1]
    source_length = batch.source.tokens.shape[1] if batch.source else 0
    while not self.exhausted:
      if self._read is None:
        self._read = self._documents[self._index]
      start, whole = self._offset, len(self._read)
      if whole - start < 2:
        self.state = (self._n_done + 1, 0)
        continue
      drawn = self._noise.draw(
        self._read[start:],
        (self._seed, self._index, start),
        length - n_written,
        source_length - n_read,
      )
      if drawn is None:
        break
      pair, n = drawn
      indices.append(self._index)
      is_last = start + n == whole
      here = len(indices), n_written, n_read
      n_written, n_read = self._write(batch, row, *here, pair, is_last)
      self.state = (self._n_done + is_last, 0 if is_last else start + n)
    return indices

  def _write(
    self,
    batch: Batch,
    row: int,
    segment: int,
    n_written: int,
    n_read: int,
    pair: Pair,
    is_last: bool,
  ) -> tuple[int, int]:
    """Writes a pair as a segment of a row; returns what is then used of both."""
    text = pair.target
    if batch.source is not None:
      read = np.concatenate([pair.source, self._eos])
      place_source(batch, row, n_read, segment, read)
      n_read += len(read)
    else:
      text = np.concatenate([pair.source, text])
    end = self._eos if pair.closed or is_last else self._eos[:0]
    sequence = np.concatenate([self._bos, text, end])
    n = len(sequence) - 1
    ones = np.ones(n, np.float32)
    place(
      batch,
      row,
      n_written,
      segment,
      Example(sequence[:-1], sequence[1:], ones),
    )
    here = np.s_[row, n_written : n_written + n]
    if batch.prefix is not None:
      n_seen = 1 + len(pair.source)
      batch.prefix[here] = n_seen
      batch.weights[row, n_written : n_written + n_seen - 1] = 0
    return n_written + n, n_read


class Interleaved:
  """Packers that fill one row each in turn, over documents of their own.

  A long document then comes in rows far apart: a small batch whose rows all go
  on where they stopped is less varied than its size says.
  """

  def __init__(
    self, make: Callable[..., Packer], first: int, step: int, n_packers: int
  ):
    """Reads documents first, first + step, ..., dealt out to the packers.

    Args:
      make: gives a packer of a first document and a step.
      first: document of a sequence.
      step: to the next.
      n_packers: that fill a row each in turn.
    """
    self._packers = [
      make(first=first + i * step, step=step * n_packers)
      for i in range(n_packers)
    ]
    self._turn = 0

  @property
  def state(self) -> list:
    """Whose turn it is, and the states of all: plain JSON."""
    return [self._turn, *(list(packer.state) for packer in self._packers)]

  @state.setter
  def state(self, state: list) -> None:
    self._turn, *places = state
    for packer, place in zip(self._packers, places, strict=True):
      packer.state = tuple(place)

  def fill(self, batch: Batch, row: int) -> list[int]:
    """Writes one row, as a packer's `fill` does."""
    indices = self._packers[self._turn].fill(batch, row)
    self._turn = (self._turn + 1) % len(self._packers)
    return indices
