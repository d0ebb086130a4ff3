"""Documents end to end, cut into rows: full rows, and no token lost.

A document is BOS, its ids, EOS. Its tokens are all but the last of them and its
targets all but the first, so each target is predicted exactly once, EOS too.
A document that does not fit continues in the packer's next row, as a segment
of its own with positions from 0: a position embedding of T entries suffices.
"""

from collections.abc import Sequence

import numpy as np

from data.batch import Batch
from data.tokenizer import BOS_ID, EOS_ID, PAD_ID

ENDS = (BOS_ID, EOS_ID)  # of a document, where its tokenizer has no others


def blank(size: int, length: int) -> Batch:
  """A batch of padding, to be filled."""
  shape = (size, length)
  return Batch(
    tokens=np.full(shape, PAD_ID, np.int32),
    targets=np.full(shape, PAD_ID, np.int32),
    weights=np.zeros(shape, np.float32),
    segment_ids=np.zeros(shape, np.int32),
    positions=np.zeros(shape, np.int32),
  )


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
    self._bos, self._eos = (np.array([i], np.int32) for i in ends)
    self._n_done = -1
    self.state = (0, 0)

  @property
  def state(self) -> tuple[int, int]:
    """(documents done, targets used of the next one)."""
    return self._n_done, self._offset

  @state.setter
  def state(self, state: tuple[int, int]) -> None:
    n_done, self._offset = state
    if n_done != self._n_done:
      self._sequence = None  # the document's ids with BOS and EOS, once read
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
      if self._sequence is None:
        ids = self._documents[self._index]
        self._sequence = np.concatenate([self._bos, ids, self._eos])
      indices.append(self._index)
      start = self._offset
      n = min(len(self._sequence) - 1 - start, length - filled)
      here = np.s_[row, filled : filled + n]
      batch.tokens[here] = self._sequence[start : start + n]
      batch.targets[here] = self._sequence[start + 1 : start + n + 1]
      batch.weights[here] = 1
      batch.segment_ids[here] = segment
      batch.positions[here] = np.arange(n)
      filled, segment = filled + n, segment + 1
      if start + n == len(self._sequence) - 1:
        self.state = (self._n_done + 1, 0)
      else:
        self._offset = start + n
    return indices

  @property
  def _index(self) -> int:
    return self._first + self._n_done * self._step


class Interleaved:
  """Packers that fill one row each in turn, over documents of their own.

  A long document then comes in rows far apart: a small batch whose rows all go
  on where they stopped is less varied than its size says.
  """

  def __init__(
    self,
    documents: Sequence,
    first: int,
    step: int,
    n_packers: int,
    ends: tuple[int, int] = ENDS,
  ):
    """Reads documents first, first + step, ..., dealt out to the packers."""
    self._packers = [
      Packer(documents, first + i * step, step * n_packers, ends)
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
