"""A document that says itself what is asked of each of its tokens.

A plain text says nothing: all of it is learnt, the next token at every place.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Example(NamedTuple):
  """Three arrays of one length; as a record, one after the other in int32.

  Targets are what is asked at each token: the next one, a label, or a number
  as the bits of its float32. Weights are 0 where nothing is asked, else 1.
  """

  tokens: Int[np.ndarray, "T"]
  targets: Int[np.ndarray, "T"]
  weights: Int[np.ndarray, "T"]

  def __len__(self) -> int:
    return len(self.tokens)


Document = Int[np.ndarray, "T"] | Example  # ids without BOS and EOS


def of(document: Document, ends: tuple[int, int]) -> Example:
  """A document as an example; ids are put between BOS and EOS."""
  if isinstance(document, Example):
    return document
  whole = np.concatenate([ends[:1], document, ends[1:]]).astype(np.int32)
  return shifted(whole, np.ones(len(whole), np.int32))


def shifted(
  ids: Int[np.ndarray, "T"], is_learnt: Int[np.ndarray, "T"]
) -> Example:
  """Each token asks for the next one, where that one is learnt."""
  return Example(ids[:-1], ids[1:], is_learnt[1:])


def record(example: Example) -> bytes:
  """What a shard holds of it."""
  return np.stack(example).astype("<i4").tobytes()


def from_record(raw: bytes) -> Example:
  """The example of a record."""
  return Example(*np.frombuffer(raw, "<i4").reshape(3, -1))
