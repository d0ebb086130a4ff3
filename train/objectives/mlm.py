"""Masked language modelling: which words were hidden, and do texts belong together?

BERT: arXiv 1810.04805.  Drawn anew at every step: RoBERTa, 1907.11692.  Whole
words: https://github.com/google-research/bert, release of May 2019.
What is drawn depends on the step's key alone. Deviation: a random token that
would be a control or the mask itself leaves the token as it is.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from configs.ranges import Natural, NonNegative, Share
from data.batch import Batch
from models import families
from sharding import context, rules
from train.objectives import lm

Sums = dict[str, tuple[Array, Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(lm.Config):
  """What is hidden, and how much pairs of texts count."""

  mask_id: Natural  # what stands for a hidden token: above the tokenizer's ids
  share: Share = 0.15  # of the tokens that are asked for
  random_share: Share = 0.1  # of these, another token in their place
  kept_share: Share = 0.1  # of these, the token itself
  controls: tuple[Natural, ...] = (0, 1, 2)  # ids that are never asked for
  whole_words: bool = False  # all pieces of a word, or none
  # Of a pair's loss, in hidden tokens: does the second text follow the first?
  # As many as a pair hides weigh as in BERT; 0: texts are no pairs.
  pair_weight: NonNegative = 0.0
  draws = True  # which words are hidden

  def __post_init__(self):
    super().__post_init__()
    if self.neftune_alpha:
      raise ValueError(
        f"neftune_alpha={self.neftune_alpha} is for what reads one way: leave it"
        " out."
      )
    if self.random_share + self.kept_share > 1:
      raise ValueError(
        f"random_share={self.random_share} and kept_share={self.kept_share} are "
        "more than all that is asked for: their sum is 1 at most."
      )


def make(
  config: Config, model: families.Config, word_edges: Bool[np.ndarray, "2 V"]
):
  """Builds the objective: (params, batch, key) -> (sum, weight, metrics).

  A key of None evaluates: no dropout, and the same draw every time.

  Args:
    config: what is hidden.
    model: an encoder with the heads that are asked.
    word_edges: of the tokenizer; `tokens_of_words` reads them.
  """
  module = families.build(model)

  def objective(params: Any, batch: Batch, key: PRNGKeyArray | None):
    draw = jax.random.key(0) if key is None else jax.random.fold_in(key, 1)
    tokens, weights = hide(config, model.vocab_size, word_edges, batch, draw)
    hidden_BTD, _ = module.apply(
      {"params": params},
      tokens,
      batch.positions,
      batch.segment_ids,
      **batch.beside,
      deterministic=key is None,
      rngs=None if key is None else {"dropout": key},
    )
    loss, sums = lm.cross_entropy(
      config,
      families.scoring(model),
      families.asked(model, params, "words", hidden_BTD),
      families.whole_head(model, params),
      batch.tokens,
      weights,
    )
    weight = weights.sum()
    metrics = {name: (s, weight) for name, s in sums.items()}
    if config.pair_weight:
      scores = families.asked(model, params, "texts", hidden_BTD, key)
      of_pairs, found = pairs(scores, batch)
      loss, metrics = loss + config.pair_weight * of_pairs, metrics | found
    return loss, weight, metrics

  return objective


def hide(
  config: Config,
  vocab_size: int,
  word_edges: Bool[np.ndarray, "2 V"],
  batch: Batch,
  key: PRNGKeyArray,
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
  """What the model reads, and a weight of 1 where it is asked for the token.

  Padding and controls are never asked for.

  Args:
    config: how much is hidden.
    vocab_size: ids of the model.
    word_edges: see `tokens_of_words`.
    batch: its tokens are the targets.
    key: of the draw, which is the same for every order of the columns.
  """
  layout, tokens = rules.current(), batch.tokens
  length = tokens.shape[1]
  columns = np.arange(length)
  if layout is not None:
    columns = context.columns(layout, length)
  in_order = np.argsort(columns)
  of_share, of_kind, of_token = jax.random.split(key, 3)
  lot = jax.random.uniform(of_share, tokens.shape)
  if config.whole_words:
    lot = tokens_of_words(
      lot, tokens[:, in_order], batch.segment_ids[:, in_order], word_edges
    )
  kind = jax.random.uniform(of_kind, tokens.shape)[:, columns]
  other = jax.random.randint(of_token, tokens.shape, 0, vocab_size)[:, columns]

  def is_control(ids):
    return jnp.isin(ids, jnp.asarray(config.controls, jnp.int32))

  asked = lot[:, columns] < config.share
  asked &= jnp.not_equal(batch.segment_ids, 0) & ~is_control(tokens)
  other = jnp.where(
    is_control(other) | jnp.equal(other, config.mask_id), tokens, other
  )
  kept = config.kept_share
  read = jnp.where(kind < kept + config.random_share, other, config.mask_id)
  read = jnp.where(kind < kept, tokens, read)
  return jnp.where(asked, read, tokens), asked.astype(jnp.float32)


def tokens_of_words(
  lot: Float[Array, "B T"],
  tokens: Int[Array, "B T"],
  segment_ids: Int[Array, "B T"],
  word_edges: Bool[np.ndarray, "2 V"],
) -> Float[Array, "B T"]:
  """Every token gets the lot of the first token of its word.

  Args:
    lot: of every token.
    tokens: in the order of the text.
    segment_ids: the same.
    word_edges: whether an id begins within a word, as far as the token before
      allows, and whether it lets the next one go on with it.
  """
  begins, goes_on = (jnp.asarray(x)[tokens] for x in word_edges)
  joins = begins[:, 1:] & goes_on[:, :-1]
  joins &= jnp.equal(segment_ids[:, 1:], segment_ids[:, :-1])
  at = jnp.arange(tokens.shape[1])[None]
  starts = jnp.where(jnp.pad(joins, ((0, 0), (1, 0))), 0, at)
  first = jax.lax.cummax(starts, axis=1)
  return jnp.take_along_axis(lot, first, axis=1)


def pairs(
  scores: Float[Array, "B T 2"], batch: Batch
) -> tuple[Float[Array, ""], Sums]:
  """Does the second text of a pair come from elsewhere? Asked at its start.

  The target of a pair's first token is 1 where it does.
  """
  real = jnp.not_equal(batch.segment_ids, 0)
  weights = (real & jnp.equal(batch.positions, 0)).astype(jnp.float32)
  targets = jnp.minimum(batch.targets, 1)
  log_p = jax.nn.log_softmax(scores)
  nll = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
  hits = jnp.equal(scores.argmax(-1), targets)
  weight = weights.sum()
  loss = (nll * weights).sum()
  return loss, {
    "pair_loss": (loss, weight),
    "pair_accuracy": ((hits * weights).sum(), weight),
  }
