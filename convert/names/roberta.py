"""RoBERTa."""

from typing import Any

from convert.names import bert
from convert.names.row import Row
from convert.settings import Settings
from models import roberta

KINDS = {
  "roberta": (
    "RobertaModel",
    "RobertaForMaskedLM",
    "RobertaForSequenceClassification",
    "RobertaForTokenClassification",
    "RobertaForQuestionAnswering",
  )
}


def rows(config: roberta.Config) -> tuple[Row, ...]:
  """Which tensor of theirs is which of ours."""
  named = bert.architecture(config, KINDS["roberta"])
  prefix = "" if named == "RobertaModel" else "roberta."
  return (*bert.body(prefix), *heads(config, prefix))


def heads(config: roberta.Config, prefix: str) -> tuple[Row, ...]:
  """Texts are scored by a head of two layers, where BERT has a pooler."""
  is_scored = "texts" in config.heads.kinds
  pooler = "classifier.dense" if is_scored else f"{prefix}pooler.dense"
  return (
    *bert.words("lm_head.dense", "lm_head"),
    *bert.norm("lm_head.layer_norm", "heads/words_norm"),
    *bert.affine(pooler, "heads/pooled"),
    *bert.affine("classifier.out_proj", "heads/texts"),
    *bert.labels(),
  )


def theirs(config: roberta.Config) -> dict[str, Any]:
  """The keys of config.json; positions are counted behind padding's id."""
  return {
    **bert.common(config, "roberta", *KINDS["roberta"]),
    "pad_token_id": config.first_position - 1,
  }


def ours(s: Settings) -> roberta.Config:
  """The way back."""
  s.expect("pad_token_id", 1)
  return bert.read(s, roberta.Config, KINDS["roberta"], vocab_size=50_265)
