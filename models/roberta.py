"""RoBERTa: BERT with one kind of text and positions that begin at two.

RoBERTa: arXiv 1907.11692.
"""

import dataclasses

from configs.ranges import Count, Epsilon, Natural
from models import bert


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(bert.Config):
  """BERT's with other defaults."""

  vocab_size: Count = 50_265
  n_types: Natural = 1  # all texts are of one kind
  norm_epsilon: Epsilon = 1e-5

  first_position = 2  # the rows before it were padding's


Model = bert.Model

PRESETS = {
  "roberta_base": Config(**bert.sized(768, 12, 12)),
  "roberta_large": Config(**bert.sized(1024, 24, 16)),
}
