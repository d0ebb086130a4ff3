"""A document that says itself what is asked of each of its tokens.

A plain text says nothing: all of it is learnt, the next token at every place.
"""

from collections.abc import Sequence
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


def id_dtype(vocab_size: int) -> np.dtype:
  """The narrowest type of a record that holds every id."""
  return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def to_record(document: Document | Sequence[int], vocab_size: int) -> bytes:
  """What a shard holds of a document."""
  if isinstance(document, Example):
    return np.stack(document).astype("<i4").tobytes()
  return np.asarray(document, id_dtype(vocab_size)).tobytes()


def from_record(raw: bytes, vocab_size: int, *, is_example: bool) -> Document:
  """The document of a record."""
  if is_example:
    return Example(*np.frombuffer(raw, "<i4").reshape(3, -1))
  return np.frombuffer(raw, id_dtype(vocab_size)).astype(np.int32)


def n_tokens(document: Document | Sequence[int]) -> int:
  """Those of a text without BOS and EOS."""
  of_it = document.tokens if isinstance(document, Example) else document
  return len(of_it)
