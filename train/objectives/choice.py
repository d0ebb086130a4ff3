"""Which objective a page asks for, by name."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from configs import fields
from models import families
from train.core import step
from train.objectives import labels, lm, mlm

CONFIGS = fields.Choice(
  {"lm": lm.Config, "mlm": mlm.Config, "labels": labels.Config}, default="lm"
)


def make(
  config: Any, model: families.Config, word_edges: Bool[np.ndarray, "2 V"]
) -> step.Objective:
  """Builds the objective of a config.

  Args:
    config: one of CONFIGS.
    model: what is trained.
    word_edges: of the tokenizer.
  """
  if isinstance(config, mlm.Config):
    return mlm.make(config, model, word_edges)
  if isinstance(config, labels.Config):
    return labels.make(config, model)
  return lm.make(config, model)
