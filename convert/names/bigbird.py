"""BigBird."""

from typing import Any

from convert.names import bert
from convert.names.row import Row
from convert.settings import Settings
from models import bigbird

KINDS = {
  "big_bird": (
    "BigBirdModel",
    "BigBirdForMaskedLM",
    "BigBirdForPreTraining",
    "BigBirdForSequenceClassification",
    "BigBirdForTokenClassification",
  )
}

# Theirs has one whatever is asked of it.
UNUSED = (r"bert\.pooler\..*",)


def rows(config: bigbird.Config) -> tuple[Row, ...]:
  """Which tensor of theirs is which of ours."""
  named = bert.architecture(config, KINDS["big_bird"])
  prefix = "" if named == "BigBirdModel" else "bert."
  is_scored = named == "BigBirdForSequenceClassification"
  return (
    *bert.body(prefix),
    *bert.predictions(),
    *bert.affine(
      "classifier.dense" if is_scored else f"{prefix}pooler", "heads/pooled"
    ),
    *bert.affine(
      "classifier.out_proj" if is_scored else "cls.seq_relationship",
      "heads/texts",
    ),
    *bert.labels(),
  )


def theirs(config: bigbird.Config) -> dict[str, Any]:
  """The keys of config.json."""
  return {
    **bert.common(
      config, "big_bird", *KINDS["big_bird"], pooling=_pooling(config)
    ),
    "attention_type": "block_sparse",
    "block_size": config.block_size,
    "num_random_blocks": config.n_random,
    "use_bias": True,
    "rescale_embeddings": False,
  }


def ours(s: Settings) -> bigbird.Config:
  """The way back."""
  s.expect("attention_type", "block_sparse")
  s.expect("use_bias", True)
  s.expect("rescale_embeddings", False)
  config = bert.read(
    s,
    bigbird.Config,
    KINDS["big_bird"],
    vocab_size=50_358,
    length=4096,
    act="gelu_tanh",
    block_size=s.take("block_size", 64),
    n_random=s.take("num_random_blocks", 3),
  )
  return bert.pooled_by(config, _pooling(config))


def _pooling(config: bigbird.Config) -> str:
  """Their head over labels of texts pools by the model's own activation."""
  return config.activation if config.heads.kinds == ("texts",) else "tanh"
