"""OPT: GPT-2 with ReLU, and two positions that no text has.

arXiv 2205.01068. Not here: the 350M model, whose norms come behind the branches
and whose embeddings are narrower than the model.
"""

import dataclasses
from typing import Literal

from configs.ranges import Count
from models import gpt
from models.layers import mlp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gpt.Config):
  """GPT's."""

  vocab_size: Count = 50_272
  max_length: Count = 2048  # tokens; there are no positions beyond
  activation: Literal[*mlp.ACTIVATIONS] = "relu"


class Model(gpt.Model):
  """Tokens to hidden states."""

  n_unused = 2


def _opt(d_model: int, n_layers: int, n_heads: int) -> Config:
  return Config(
    d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model
  )


PRESETS = {
  "opt_125m": _opt(768, 12, 12),
  "opt_1_3b": _opt(2048, 24, 32),
  "opt_2_7b": _opt(2560, 32, 32),
  "opt_6_7b": _opt(4096, 32, 32),
  "opt_13b": _opt(5120, 40, 40),
  "opt_30b": _opt(7168, 48, 56),
  "opt_66b": _opt(9216, 64, 72),
}
