"""How often words stand near each other, counted in bounded memory.

As in GloVe (Pennington and others, 2014): a pair that is n words apart counts
1 / n, in either direction. Pairs are counted a piece of the corpus at a time and
added up sorted; no [V, V] is ever made.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from data import words

Array = np.ndarray
PIECE = 1 << 18  # words whose pairs are counted at once


class Counts(NamedTuple):
  """The pairs that occur at all, in order."""

  rows: Int[Array, "pairs"]
  columns: Int[Array, "pairs"]
  weights: Float[Array, "pairs"]


def count(corpus: words.Corpus, window: int, max_pairs: int) -> Counts:
  """Counts pairs of up to `window` words apart, within a text.

  Args:
    corpus: words and texts.
    window: words on either side.
    max_pairs: different ones; 16 bytes each, three times while they are added.

  Raises:
    ValueError: there are more.
  """
  keys, weights = np.zeros(0, np.int64), np.zeros(0)
  for start in range(0, len(corpus.ids), PIECE):
    # The words ahead of a piece are seen again, as the left of its pairs.
    first = max(start - window, 0)
    piece = slice(first, start + PIECE)
    keys, weights = _add(
      keys,
      weights,
      *_pairs(
        corpus.ids[piece].astype(np.int64),
        corpus.texts[piece],
        start - first,
        window,
        len(corpus.words),
      ),
    )
    if len(keys) > max_pairs:
      raise ValueError(
        f"model.max_pairs={max_pairs:,} different pairs of words are exceeded: "
        "lower data.max_words or model.window, raise data.min_count, or raise "
        "it (48 bytes of memory each)."
      )
  v = len(corpus.words)
  return Counts(
    (keys // v).astype(np.int32),
    (keys % v).astype(np.int32),
    weights.astype(np.float32),
  )


def _pairs(
  ids: Int[Array, "N"],
  texts: Int[Array, "N"],
  n_seen: int,
  window: int,
  v: int,
) -> tuple[Int[Array, "K"], Float[Array, "K"]]:
  """Sorted keys of a piece's pairs, and what each weighs."""
  found, weights = [], []
  for ago in range(1, window + 1):
    right = np.arange(max(ago, n_seen), len(ids))
    right = right[texts[right] == texts[right - ago]]
    a, b = ids[right - ago], ids[right]
    found += [a * v + b, b * v + a]
    weights.append(np.full(2 * len(a), 1.0 / ago))
  keys, of = np.unique(np.concatenate(found), return_inverse=True)
  return keys, np.bincount(of, np.concatenate(weights), len(keys))


def _add(
  keys: Int[Array, "K"],
  weights: Float[Array, "K"],
  new: Int[Array, "N"],
  added: Float[Array, "N"],
) -> tuple[Int[Array, "M"], Float[Array, "M"]]:
  """Two sets of sorted keys as one, and what each weighs."""
  at = np.searchsorted(keys, new)
  known = np.append(keys, -1)[at] == new
  weights[at[known]] += added[known]
  at = at[~known]
  return np.insert(keys, at, new[~known]), np.insert(weights, at, added[~known])
