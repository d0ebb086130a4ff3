"""One endless, shuffled sequence of documents out of several corpora.

Any document of it is found from its index alone, so that a stream that reads
some of the indices resumes anywhere at no cost.
"""

import functools
import sys
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int

from data import example, store

DECK = 1 << 16  # documents in which each corpus has exactly its share


class Documents(Sequence):
  """The documents of several corpora in one order, endless or not."""

  def __init__(self, corpora: Sequence[store.Corpus], order: grain.MapDataset):
    """Takes an order of places, as `place` gives them."""
    self._corpora, self._order = corpora, order

  def __len__(self) -> int:
    return len(self._order)

  def __getitem__(self, index: int) -> example.Document:
    part, place = self.place(index)
    return self._corpora[part][place]

  def place(self, index: int) -> tuple[int, int]:
    """Whence a document comes: the number of its corpus, and its own there."""
    return self._order[index]


def joined(corpora: Sequence[store.Corpus]) -> Documents:
  """The documents of all corpora, one corpus after the other."""
  return Documents(corpora, _end_to_end(corpora))


def shuffled(
  corpora: Sequence[store.Corpus], weights: Sequence[float], seed: int
) -> Documents:
  """Shuffles corpora into one endless sequence.

  Without weights, n documents in all come once in each n, in another order each
  time. With weights, each corpus is shuffled and repeated by itself, and dealt
  out so that its share of the tokens is its weight.
  """
  if not weights:
    order = _end_to_end(corpora).shuffle(seed=_seed(seed, 0)).repeat()
  else:
    order = grain.MapDataset.source(_Mixture(corpora, weights, seed))
  return Documents(corpora, order)


class _Places:
  """(number of the corpus, index) of each of its documents."""

  def __init__(self, part: int, corpus: store.Corpus):
    self._part, self._n = part, len(corpus)

  def __len__(self) -> int:
    return self._n

  def __getitem__(self, index: int) -> tuple[int, int]:
    return self._part, int(index)


def _places(corpora: Sequence[store.Corpus]) -> list[grain.MapDataset]:
  return [
    grain.MapDataset.source(_Places(part, corpus))
    for part, corpus in enumerate(corpora)
  ]


def _end_to_end(corpora: Sequence[store.Corpus]) -> grain.MapDataset:
  return grain.MapDataset.concatenate(_places(corpora))


class _Mixture:
  """Deals documents from shuffled decks that name a corpus on each card.

  A plain round would meet the rows of a batch in step: with two corpora in
  turn, an even row would only ever read the first.
  """

  def __init__(
    self, corpora: Sequence[store.Corpus], weights: Sequence[float], seed: int
  ):
    self._parts = [
      places.shuffle(seed=_seed(seed, i)).repeat()
      for i, places in enumerate(_places(corpora))
    ]
    self._quotas = quotas(corpora, weights)
    self._seed = _seed(seed, len(corpora))
    # Rows come through the decks at their own pace, but not far apart.
    self._deck = functools.lru_cache(maxsize=64)(self._shuffle_deck)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> tuple[int, int]:
    number, place = divmod(index, DECK)
    part, turn = (array[place] for array in self._deck(number))
    return self._parts[part][int(turn)]

  def _shuffle_deck(
    self, number: int
  ) -> tuple[Int[np.ndarray, "DECK"], Int[np.ndarray, "DECK"]]:
    """Gives the corpus of each card, and the how-many-eth of its documents."""
    # Raw bits and a stable sort: the same in every version of numpy.
    keys = np.random.PCG64([self._seed, number]).random_raw(DECK)
    parts = np.repeat(np.arange(len(self._quotas)), self._quotas)
    parts = parts[np.argsort(keys, kind="stable")]
    turns = np.empty(DECK, np.int64)
    for part, quota in enumerate(self._quotas):
      turns[parts == part] = number * quota + np.arange(quota)
    return parts, turns


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
