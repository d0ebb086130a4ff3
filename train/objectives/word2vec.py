"""word2vec: skip-gram and CBOW with negative sampling; fastText with subwords.

arXiv 1301.3781, 1310.4546; fastText: 1607.04606. A bag of rows has a mean, which
is to be near the vector of the word that goes with the bag, and far from words
drawn at random: in skip-gram the bag is the word in the middle, in CBOW all
those around it. With subwords every word of a bag is its own row and those of
its n-grams. Deviations: AdaGrad in the place of plain gradient descent, as many
pairs are read at once; the gradient of a mean is that of the mean, which
word2vec's own CBOW does not divide.
Extra letters: W words of a bag, P rows of a word, K words drawn.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from configs import fields
from configs.ranges import Count, NonNegative
from data import words
from models.classic import subwords as subwords_lib
from models.classic.vectors import Vectors
from train.core import rows

PIECE = 1 << 17  # words of the corpus whose pairs are made, and mixed, at once
N_BATCHES = 32  # in a block, which is one call of the device
N_SLOTS = 1 << 20  # of the table that words are drawn from
SQUARE = 1e-3  # where AdaGrad's sums start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes, and what is asked; defaults are word2vec's."""

  kind: Literal["skipgram", "cbow"] = "skipgram"
  d_model: Count = 100
  window: Count = 5  # words on either side; each draws its own up to that
  n_negatives: Count = 5  # words drawn for each pair
  power: NonNegative = 0.75  # words are drawn by this power of their counts
  subsample: NonNegative = (
    1e-3  # words of larger shares are passed over at times
  )
  subwords: subwords_lib.Config | None = None  # fastText's n-grams

  def __post_init__(self):
    fields.check(self)


PRESETS = {
  "skipgram": Config(),
  "cbow": Config(kind="cbow"),
  "fasttext": Config(subwords=subwords_lib.Config()),
}


def begin(
  config: Config, corpus: words.Corpus, key: Key[Array, ""]
) -> tuple[rows.State, dict[str, Array]]:
  """Tables as word2vec starts them, and what no step changes."""
  parts = subwords_lib.parts(config.subwords, corpus.words)
  n_rows = len(corpus.words)
  n_rows += config.subwords.n_buckets if config.subwords else 0
  width = config.d_model
  first = jax.random.uniform(key, (n_rows, width), minval=-0.5, maxval=0.5)
  tables = {"in": first / width, "out": jnp.zeros((len(corpus.words), width))}
  slots = drawn_from(corpus.counts, config.power)
  fixed = {"parts": jnp.asarray(parts), "slots": jnp.asarray(slots)}
  return rows.begin(tables, SQUARE), fixed


def drawn_from(
  counts: Int[np.ndarray, "V"], power: float
) -> Int[np.ndarray, "slots"]:
  """Every word as often as counts**power says, among N_SLOTS."""
  shares = np.cumsum(counts.astype(np.float64) ** power)
  middles = (np.arange(N_SLOTS) + 0.5) / N_SLOTS * shares[-1]
  return np.searchsorted(shares, middles).astype(np.int32)


@functools.cache
def objective(n_negatives: int) -> rows.Objective:
  """What a batch of (bag of words, word that goes with it) asks."""

  def of(fixed, batch, key):
    bags, targets = batch
    drawn = jax.random.randint(
      key, (len(targets), n_negatives), 0, len(fixed["slots"])
    )
    negatives = fixed["slots"][drawn]
    ids = {
      "in": _rows_of(fixed["parts"], bags),
      "out": jnp.concatenate([targets[:, None], negatives], axis=1),
    }
    real = jnp.not_equal(targets, words.NONE)
    # What goes with the bag is no counterexample, should it be drawn.
    counts = jnp.not_equal(negatives, targets[:, None]) & real[:, None]
    counts = jnp.concatenate([real[:, None], counts], axis=1)
    is_row = jnp.not_equal(ids["in"], words.NONE)

    def loss(found):
      nll = negative_sampling(found["in"], is_row, found["out"], counts)
      return nll.sum(), real.sum()

    return ids, loss

  return of


def _rows_of(
  parts: Int[Array, "V P"], bags: Int[Array, "B W"]
) -> Int[Array, "B R"]:
  """All rows of all words of each bag."""
  is_word = jnp.not_equal(bags, words.NONE)[..., None]
  found = jnp.where(is_word, parts[jnp.maximum(bags, 0)], words.NONE)
  return found.reshape(len(bags), -1)


def negative_sampling(
  in_BRD: Float[Array, "B R D"],
  is_row_BR: Bool[Array, "B R"],
  out_BKD: Float[Array, "B K D"],
  counts_BK: Bool[Array, "B K"],
) -> Float[Array, "B"]:
  """-log sigmoid(h o_0) - sum of log sigmoid(-h o_k), h the mean of the rows."""
  n_rows_B1 = jnp.maximum(is_row_BR.sum(1), 1)[:, None]
  h_BD = (in_BRD * is_row_BR[..., None]).sum(1) / n_rows_B1
  logits_BK = jnp.einsum("BD,BKD->BK", h_BD, out_BKD)
  sign_K = jnp.where(jnp.arange(out_BKD.shape[1]) == 0, 1.0, -1.0)
  log_p_BK = jax.nn.log_sigmoid(sign_K[None] * logits_BK)
  return -jnp.where(counts_BK, log_p_BK, 0.0).sum(1)


def blocks(
  config: Config, corpus: words.Corpus, train: rows.Config
) -> Iterator[tuple[float, tuple[Array, Array]]]:
  """How much of the training is done behind N_BATCHES batches, and these.

  The last ones are filled up with words.NONE.
  """
  rng = np.random.default_rng(train.seed)
  keeping = words.keeping(corpus.counts, config.subsample)
  size = N_BATCHES * train.batch
  bags = np.zeros((0, 2 * config.window), np.int32)
  bags = bags if config.kind == "cbow" else bags[:, :1]
  targets = np.zeros(0, np.int32)
  n_all, n_read, n_told = train.epochs * len(corpus.ids), 0, 0
  for _ in range(train.epochs):
    is_read = words.thinned(corpus, keeping, rng)
    for start in range(0, len(corpus.ids), PIECE):
      piece = slice(start, start + PIECE)
      n_read += len(corpus.ids[piece])
      new = _pairs(
        config, corpus.ids[piece][is_read[piece]],
        corpus.texts[piece][is_read[piece]], rng,
      )  # fmt: skip
      bags, targets = (
        np.concatenate(x) for x in zip((bags, targets), new, strict=True)
      )
      is_last = n_read == n_all
      if is_last:
        # At least one block, so that the last of them is the end.
        fill = max(-(-len(targets) // size), 1) * size - len(targets)
        bags = np.pad(bags, ((0, fill), (0, 0)), constant_values=words.NONE)
        targets = np.pad(targets, (0, fill), constant_values=words.NONE)
      n_whole = len(targets) // size
      for i in range(n_whole):
        cut = slice(i * size, (i + 1) * size)
        block = (
          bags[cut].reshape(N_BATCHES, train.batch, -1),
          targets[cut].reshape(N_BATCHES, train.batch),
        )
        share = (n_read - n_told) * (i + 1) / n_whole
        yield (n_told + share) / n_all, block
      if n_whole:
        n_told = n_read
      bags, targets = bags[n_whole * size :], targets[n_whole * size :]


def _pairs(
  config: Config,
  ids: Int[np.ndarray, "N"],
  texts: Int[np.ndarray, "N"],
  rng: np.random.Generator,
) -> tuple[Int[np.ndarray, "M W"], Int[np.ndarray, "M"]]:
  """Bags and the words that go with them, mixed."""
  reach = rng.integers(1, config.window + 1, len(ids))
  near = words.around(ids, texts, reach)
  if config.kind == "cbow":
    near = np.pad(
      near,
      ((0, 0), (0, 2 * config.window - near.shape[1])),
      constant_values=words.NONE,
    )
    some = (near != words.NONE).any(1)
    bags, targets = near[some], ids[some]
  else:
    middle, place = np.nonzero(near != words.NONE)
    bags, targets = ids[middle][:, None], near[middle, place]
  order = rng.permutation(len(targets))
  return bags[order], targets[order]


def vectors(config: Config, corpus: words.Corpus, state: rows.State) -> Vectors:
  """What was learnt: of every word the mean of its rows."""
  table = np.asarray(state.tables["in"])
  parts = subwords_lib.parts(config.subwords, corpus.words)
  is_row = (parts != subwords_lib.NONE)[..., None]
  means = np.empty((len(corpus.words), config.d_model), np.float32)
  for start in range(0, len(means), PIECE // 64):
    piece = slice(start, start + PIECE // 64)
    sums = (table[parts[piece]] * is_row[piece]).sum(1)
    means[piece] = sums / is_row[piece].sum(1)
  n = len(corpus.words)
  buckets = table[n:] if config.subwords else None
  return Vectors(corpus.words, means, config.subwords, buckets)
