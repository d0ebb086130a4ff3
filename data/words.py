"""Texts as words: which there are, how often, and what lies around each.

Windows and subsampling of word2vec: arXiv 1310.4546. Extra letters: N words of
the corpus, W places of a window.
"""

import array
import collections
import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from configs import fields
from configs.ranges import Count
from data import sources

Array = np.ndarray
NONE = -1  # in the place of a word
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which words of which documents."""

  sources: tuple[str, ...] = ("stdlib",)  # see data/sources/__init__.py
  text_key: str = "text"  # of a JSON object; the column of a table
  lower: bool = True  # case is forgotten
  min_count: Count = 5  # rarer words are passed over, as if not there; word2vec
  max_words: Count = 200_000  # different ones, the most frequent

  def __post_init__(self):
    fields.check(self)
    if not all(self.sources) or not self.sources:
      raise ValueError(
        f"data.sources={self.sources} names nothing: give at least one source."
      )


class Corpus(NamedTuple):
  """All words of all texts, in order; eight bytes for each."""

  words: tuple[str, ...]  # the different ones, the most frequent first
  counts: Int[Array, "V"]
  ids: Int[Array, "N"]
  texts: Int[Array, "N"]  # the number of each one's text


def split(text: str, lower: bool) -> list[str]:
  """The words of a text: what is joined by letters, digits and underscores."""
  return _WORD.findall(text.lower() if lower else text)


def read(config: Config) -> Corpus:
  """Reads the sources once.

  Raises:
    ValueError: hardly a word is left.
  """
  texts = (
    split(document.text, config.lower)
    for source in config.sources
    for document in sources.documents(source, config.text_key)
  )
  corpus = index(texts, config.min_count, config.max_words)
  if len(corpus.words) < 2:
    raise ValueError(
      f"data.sources={config.sources} hold {len(corpus.words)} words that occur "
      f"data.min_count={config.min_count} times: lower that, or give more text."
    )
  return corpus


def index(
  texts: Iterable[Iterable[str]], min_count: int, max_words: int
) -> Corpus:
  """Numbers words by how often they occur; of equal ones the first comes first.

  Args:
    texts: words of each.
    min_count: rarer words are left out of the texts.
    max_words: as are all but so many.
  """
  seen: collections.defaultdict[str, int] = collections.defaultdict(
    lambda: len(seen)
  )
  stream, lengths = array.array("i"), array.array("q")
  for text in texts:
    before = len(stream)
    stream.extend(seen[word] for word in text)
    lengths.append(len(stream) - before)
  found = np.frombuffer(stream, np.int32) if stream else np.zeros(0, np.int32)
  counts = np.bincount(found, minlength=len(seen))
  order = np.argsort(-counts, kind="stable")
  kept = order[counts[order] >= min_count][:max_words]
  number = np.full(len(seen), NONE, np.int32)
  number[kept] = np.arange(len(kept), dtype=np.int32)
  ids = number[found]
  text_of = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
  known, names = ids != NONE, list(seen)
  return Corpus(
    tuple(names[i] for i in kept), counts[kept], ids[known], text_of[known]
  )


def keeping(counts: Int[Array, "V"], threshold: float) -> Float[Array, "V"]:
  """How likely each word is read where it stands: sqrt(threshold / frequency).

  Args:
    counts: of each word.
    threshold: the share of all words above which some are passed over; 0 keeps
      all.
  """
  if not threshold:
    return np.ones(len(counts))
  return np.minimum(1.0, np.sqrt(threshold * counts.sum() / counts))


def around(
  ids: Int[Array, "N"], texts: Int[Array, "N"], reach: Int[Array, "N"]
) -> Int[Array, "N W"]:
  """The words before and behind each, up to its reach; NONE where is none.

  They are of its text, the nearest on the left first, then those on the right.
  """
  widest = int(reach.max(initial=0))
  out = np.full((len(ids), 2 * widest), NONE, np.int32)
  for ago in range(1, min(widest, len(ids) - 1) + 1):
    same = texts[ago:] == texts[:-ago]
    back, ahead = same & (reach[ago:] >= ago), same & (reach[:-ago] >= ago)
    out[ago:, ago - 1][back] = ids[:-ago][back]
    out[:-ago, widest + ago - 1][ahead] = ids[ago:][ahead]
  return out


def thinned(
  corpus: Corpus, kept: Float[Array, "V"], rng: np.random.Generator
) -> Bool[Array, "N"]:
  """Which words of the corpus are read this time."""
  return rng.random(len(corpus.ids)) < kept[corpus.ids]
