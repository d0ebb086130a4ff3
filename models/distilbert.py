"""DistilBERT: half of BERT's layers, no kinds of text.

DistilBERT: arXiv 1910.01108.
"""

import dataclasses

from configs.ranges import Natural
from models import bert
from models.layers.heads import Config as HeadsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(bert.Config):
  """BERT's with other defaults."""

  n_types: Natural = 0
  heads: HeadsConfig = HeadsConfig(pooling="relu")


Model = bert.Model

PRESETS = {
  "distilbert_base_uncased": Config(**bert.sized(768, 6, 12)),
  "distilbert_base_cased": Config(**bert.sized(768, 6, 12, vocab_size=28_996)),
}
