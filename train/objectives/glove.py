"""GloVe: products of word vectors are logarithms of how often words meet.

Pennington and others, 2014, as their program: weighted least squares over the
pairs that occur, AdaGrad, and the sum of both vectors of a word in the end. The
last column of a row is its bias. Deviation: lr falls to nothing, where theirs
stays.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Key

from configs import fields
from configs.ranges import Count, Positive
from data import cooccurrence, words
from models.classic.vectors import Vectors
from train.core import rows

N_BATCHES = 32  # in a block, which is one call of the device
SQUARE = 1.0  # where AdaGrad's sums start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes and weights; defaults are those of the paper."""

  d_model: Count = 100
  window: Count = 10  # words on either side
  largest: Positive = 100.0  # pairs that meet as often count fully
  power: Annotated[float, "(0, 1]"] = 0.75  # rarer ones by this power less
  max_pairs: Count = 50_000_000  # different ones, 48 bytes of memory each

  def __post_init__(self):
    fields.check(self)


PRESETS = {"glove": Config()}


def begin(config: Config, n_words: int, key: Key[Array, ""]) -> rows.State:
  """Tables as GloVe starts them."""
  shape = (2, n_words, config.d_model + 1)
  drawn = jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)
  word, context = drawn / config.d_model
  return rows.begin({"word": word, "context": context}, SQUARE)


def objective(fixed, batch, key) -> tuple[rows.Ids, rows.Loss]:
  """What a batch of (word, word, how often they meet) asks."""
  del key
  word, context, weights = batch
  ids = {"word": word, "context": context}

  def loss(found):
    errors = squares(
      found["word"], found["context"], weights, fixed["largest"], fixed["power"]
    )
    return errors.sum(), (weights > 0).sum()

  return ids, loss


def squares(
  word_BD: Float[Array, "B D"],
  context_BD: Float[Array, "B D"],
  weights_B: Float[Array, "B"],
  largest: Float[Array, ""] | float,
  power: Float[Array, ""] | float,
) -> Float[Array, "B"]:
  """Half of f(x) (w c + b_w + b_c - log x)^2; 0 where x is.

  The half is that of the authors' program, and not of the paper.
  """
  product_B = (word_BD[:, :-1] * context_BD[:, :-1]).sum(1)
  found_B = product_B + word_BD[:, -1] + context_BD[:, -1]
  wanted_B = jnp.log(jnp.where(weights_B > 0, weights_B, 1.0))
  f_B = jnp.minimum(weights_B / largest, 1.0) ** power
  return 0.5 * f_B * jnp.square(found_B - wanted_B)


def blocks(
  counts: cooccurrence.Counts, train: rows.Config
) -> Iterator[tuple[float, tuple[Array, ...]]]:
  """How much of the training is done behind N_BATCHES batches, and these.

  Every epoch in another order; the last batches are filled up with NONE.
  """
  rng = np.random.default_rng(train.seed)
  n, size = len(counts.rows), N_BATCHES * train.batch
  for epoch in range(train.epochs):
    order = rng.permutation(n)
    for start in range(0, n, size):
      at = order[start : start + size]
      fill = size - len(at)
      block = [
        np.pad(x[at], (0, fill), constant_values=none).reshape(N_BATCHES, -1)
        for x, none in zip(counts, (words.NONE, words.NONE, 0), strict=True)
      ]
      done = epoch * n + start + len(at)
      yield done / (train.epochs * n), tuple(block)


def vectors(corpus: words.Corpus, state: rows.State) -> Vectors:
  """What was learnt, without the biases."""
  table = state.tables["word"] + state.tables["context"]
  return Vectors(corpus.words, np.asarray(table[:, :-1]))
