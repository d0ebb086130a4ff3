"""Labels of texts or of their tokens, or a number for a text.

Where the batch's weights ask, the target is the number of a class, or, of
`measure`, the bits of a float32. What is asked of a text is asked at its first
token; a decoder answers at the last, which has read all of it (as GPT, Radford
et al. 2018). Texts begin and end with the tokenizer's tokens for that.
"""

import dataclasses
from typing import Any, Literal

import jax
import optax
from jax import numpy as jnp
from jaxtyping import PRNGKeyArray

from configs import fields
from configs.ranges import Fraction
from data.batch import Batch
from models import families
from train.objectives import lm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is asked."""

  # Which of model.heads.kinds is asked; of "measure", texts with one label.
  of: Literal["texts", "tokens", "measure"] = "texts"
  label_smoothing: Fraction = 0.0  # of a target, spread over the classes
  ahead_weight = 0.0  # only what reads one way has a token after next
  draws = False

  def __post_init__(self):
    fields.check(self)
    if self.of == "measure" and self.label_smoothing:
      raise ValueError(
        f"label_smoothing={self.label_smoothing} with of='measure': a number "
        "is no class. Leave it out."
      )

  @property
  def head(self) -> str:
    """The head of the model that answers."""
    return "tokens" if self.of == "tokens" else "texts"


def make(config: Config, model: families.Config):
  """Builds the objective: (params, batch, key) -> (sum, weight, metrics).

  A key of None evaluates: no dropout.
  """
  module = families.build(model)

  def objective(params: Any, batch: Batch, key: PRNGKeyArray | None):
    (hidden_BTD, _), sown = module.apply(
      {"params": params},
      batch.tokens,
      batch.positions,
      batch.segment_ids,
      **batch.beside,
      deterministic=key is None,
      rngs=None if key is None else {"dropout": key},
      mutable=lm.SOWN,
    )
    if config.head == "texts":
      places = batch.positions, batch.segment_ids
      scores_BTW = families.of_texts(model, params, hidden_BTD, *places, key)
    else:
      scores_BTW = families.asked(model, params, "tokens", hidden_BTD, key)
    weight = batch.weights.sum()
    if config.of == "measure":
      wanted = jax.lax.bitcast_convert_type(batch.targets, jnp.float32)
      loss_BT = (scores_BTW[..., 0] - jnp.where(batch.weights, wanted, 0)) ** 2
      found = {}
    else:
      n = scores_BTW.shape[-1]
      wanted = jax.nn.one_hot(jnp.where(batch.weights, batch.targets, 0), n)
      wanted = optax.smooth_labels(wanted, config.label_smoothing)
      loss_BT = optax.softmax_cross_entropy(scores_BTW, wanted)
      is_hit = jnp.equal(scores_BTW.argmax(-1), batch.targets)
      found = {"accuracy": ((is_hit * batch.weights).sum(), weight)}
    loss = (loss_BT * batch.weights).sum()
    metrics = {"loss": (loss, weight), **found, **lm.figures(sown)}
    return loss + weight * lm.beside(model, sown), weight, metrics

  return objective
