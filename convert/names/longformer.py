"""Longformer."""

from typing import Any

from convert.names import bert, roberta
from convert.names.row import Row
from convert.settings import Settings
from models import longformer

KINDS = {
  "longformer": (
    "LongformerModel",
    "LongformerForMaskedLM",
    "LongformerForSequenceClassification",
    "LongformerForTokenClassification",
    "LongformerForQuestionAnswering",
  )
}


def rows(config: longformer.Config) -> tuple[Row, ...]:
  """Which tensor of theirs is which of ours."""
  named = bert.architecture(config, KINDS["longformer"])
  prefix = "" if named == "LongformerModel" else "longformer."
  inner = f"{prefix}encoder.layer.{{i}}.attention.self."
  whole = {
    f"{x}_whole": f"{inner}{name}_global"
    for x, name in zip("qkv", bert.PARTS, strict=True)
  }
  return (
    *bert.body(prefix),
    *bert.attention(whole),
    *roberta.heads(config, prefix),
  )


def theirs(config: longformer.Config) -> dict[str, Any]:
  """The keys of config.json."""
  return {
    **bert.common(config, "longformer", *KINDS["longformer"]),
    "pad_token_id": config.first_position - 1,
    "attention_window": [2 * config.window] * config.n_layers,
  }


def ours(s: Settings) -> longformer.Config:
  """The way back.

  Raises:
    ValueError: the layers have windows of several sizes, or an odd one.
  """
  s.expect("pad_token_id", 1)
  s.take("attention_mode", None)  # of older files: how it was computed
  s.take("ignore_attention_mask", None)
  s.take("onnx_export", False)
  given = s.take("attention_window", 512)
  sizes = {*given} if isinstance(given, list) else {given}
  if len(sizes) > 1 or min(sizes) % 2:
    raise ValueError(
      f"config.json says attention_window={given}: this house has one even "
      "window for all layers."
    )
  return bert.read(
    s, longformer.Config, KINDS["longformer"], window=min(sizes) // 2
  )
