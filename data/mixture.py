"""One endless, shuffled sequence of documents out of several corpora.

Any document of it is found from its index alone, so that a stream that reads
some of the indices resumes anywhere at no cost.
"""

import bisect
import itertools
import sys
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int

from data import store

DECK = 1 << 16  # documents in which each corpus has exactly its share


def joined(corpora: Sequence[store.Corpus]) -> grain.MapDataset:
  """The documents of all corpora, one corpus after the other."""
  return grain.MapDataset.concatenate(
    [grain.MapDataset.source(corpus) for corpus in corpora]
  )


def shuffled(
  corpora: Sequence[store.Corpus], weights: Sequence[float], seed: int
) -> grain.MapDataset:
  """Shuffles corpora into one endless sequence.

  Without weights, n documents in all come once in each n, in another order each
  time. With weights, each corpus is shuffled and repeated by itself, and dealt
  out so that its share of the tokens is its weight.
  """
  if not weights:
    return joined(corpora).shuffle(seed=_seed(seed, 0)).repeat()
  return grain.MapDataset.source(_Mixture(corpora, weights, seed))


class _Mixture:
  """Deals documents from a shuffled deck that names a corpus on each card.

  A plain round would meet the rows of a batch in step: with two corpora in
  turn, an even row would only ever read the first.
  """

  def __init__(
    self, corpora: Sequence[store.Corpus], weights: Sequence[float], seed: int
  ):
    self._parts = [
      grain.MapDataset.source(corpus).shuffle(seed=_seed(seed, i)).repeat()
      for i, corpus in enumerate(corpora)
    ]
    self._quotas = quotas(corpora, weights)
    self._ends = list(itertools.accumulate(self._quotas))
    self._seed = _seed(seed, len(corpora))

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> Int[np.ndarray, "T"]:
    n_decks, place = divmod(index, DECK)
    card = grain.experimental.index_shuffle(
      place,
      max_index=DECK - 1,
      seed=(self._seed + n_decks) % 2**32,
      rounds=4,
    )
    part = bisect.bisect_right(self._ends, card)
    quota = self._quotas[part]
    return self._parts[part][(n_decks - 1) * quota + card - self._ends[part]]


def quotas(
  corpora: Sequence[store.Corpus], weights: Sequence[float]
) -> list[int]:
  """Cards of each corpus in a deck, for shares of tokens.

  Long documents make few cards; every corpus has at least one.
  """
  cards = np.array(
    [
      weight * corpus.n_documents / corpus.n_tokens
      for corpus, weight in zip(corpora, weights, strict=True)
    ]
  )
  exact = cards / cards.sum() * (DECK - len(cards))
  floor = np.floor(exact).astype(int)
  left = DECK - len(cards) - floor.sum()
  floor[np.argsort(floor - exact, kind="stable")[:left]] += 1
  return (floor + 1).tolist()


def _seed(*entropy: int) -> int:
  """A 32-bit seed, far from those of neighbouring numbers.

  Grain adds the epoch to it: plain seeds 0 and 1 would share their shuffles.
  """
  return int(np.random.SeedSequence(entropy).generate_state(1)[0])
