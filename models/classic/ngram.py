"""N-grams with interpolated Kneser-Ney smoothing, counted by numpy.

Improved Backing-off for M-gram Language Modeling (Kneser and Ney, 1995), as in
An Empirical Study of Smoothing Techniques (Chen and Goodman, cmp-lg/9606011):
one discount an order, from the counts of counts. Ahead of a text lie as many BOS
as a context has tokens.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray


class Order(NamedTuple):
  """All n-grams of one length, and the contexts that they begin with."""

  contexts: Int[Array, "contexts"]  # (shorter context, older token), sorted
  grams: Int[Array, "grams"]  # (context, token), sorted
  counts: Int[Array, "grams"]  # of a gram; shorter ones: of tokens ahead of it
  totals: Int[Array, "contexts"]  # the counts that follow a context
  kinds: Int[Array, "contexts"]  # the different tokens that do
  discount: float


class Model(NamedTuple):
  """From one token alone to n of them."""

  orders: tuple[Order, ...]
  vocab_size: int
  bos_id: int
  eos_id: int


def fit(
  texts: Iterable[Array],
  n: int,
  vocab_size: int,
  *,
  bos_id: int,
  eos_id: int,
) -> Model:
  """Counts all n-grams of texts and what they are made of.

  Args:
    texts: ids, without BOS and EOS.
    n: tokens of the longest.
    vocab_size: ids are below.
    bos_id: what lies ahead of a text.
    eos_id: what ends it, and is predicted too.
  """
  stream, places = _stream(texts, n, bos_id, eos_id)
  found, context = [], np.zeros(len(places), np.int64)
  for k in range(n):  # tokens of the context
    keys = np.zeros(1, np.int64)
    if k:
      wide = context * vocab_size + stream[places - k]
      keys, context = np.unique(wide, return_inverse=True)
    found.append((keys, context, context * vocab_size + stream[places]))
  orders: list[Order] = []
  own = np.arange(len(places))  # one place for each longer gram, or all
  for keys, _, grams in reversed(found):
    kinds, first, counts = np.unique(
      grams[own], return_index=True, return_counts=True
    )
    of = kinds // vocab_size
    once, twice = (int((counts == i).sum()) for i in (1, 2))
    orders.append(
      Order(
        contexts=keys,
        grams=kinds,
        counts=counts,
        totals=np.bincount(of, counts, len(keys)).astype(np.int64),
        kinds=np.bincount(of, minlength=len(keys)),
        discount=once / (once + 2 * twice) if once and twice else 0.75,
      )
    )
    own = own[first]
  return Model(tuple(reversed(orders)), vocab_size, bos_id, eos_id)


def log2_likelihood(model: Model, text: Int[Array, "T"]) -> Float[Array, "T+1"]:
  """log2 of the probability of every token of a text, and of its end."""
  n, v = len(model.orders), model.vocab_size
  stream, places = _stream([text], n, model.bos_id, model.eos_id)
  context = np.zeros(len(places), np.int64)
  known = np.ones(len(places), bool)
  p = np.full(len(places), 1 / v)
  for k, order in enumerate(model.orders):
    if k:
      wide = context * v + stream[places - k]
      context, is_there = _find(order.contexts, wide)
      known &= is_there
    at, is_there = _find(order.grams, context * v + stream[places])
    counts = np.where(is_there, order.counts[at], 0)
    spare = order.discount * order.kinds[context] * p
    longer = np.maximum(counts - order.discount, 0) + spare
    # What nothing ever followed says nothing: the shorter context stands.
    p = np.where(known, longer / np.maximum(order.totals[context], 1), p)
  return np.log2(p)


def _stream(
  texts: Iterable[Array], n: int, bos_id: int, eos_id: int
) -> tuple[Int[Array, "N"], Int[Array, "P"]]:
  """Texts end to end behind their BOS, and the places that are predicted."""
  ahead, end = np.full(n - 1, bos_id, np.int64), np.array([eos_id], np.int64)
  parts = [np.concatenate([ahead, text, end]) for text in texts]
  predicted = [np.arange(len(part)) >= n - 1 for part in parts]
  return np.concatenate(parts), np.flatnonzero(np.concatenate(predicted))


def _find(
  keys: Int[Array, "K"], wanted: Int[Array, "N"]
) -> tuple[Int[Array, "N"], Array]:
  """Where each wanted key lies among sorted ones, and whether it does."""
  at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
  return at, keys[at] == wanted
