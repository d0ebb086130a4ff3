"""OLMo 2."""

from typing import Any

from convert import settings
from convert.names import llama
from convert.names.row import Row
from convert.settings import Settings
from models import olmo2

_THEIRS = "model.layers.{i}."
ROWS = (
  *[row for row in llama.ROWS if "layernorm" not in row.theirs],
  *[
    Row(f"{_THEIRS}{hf}.weight", (f"stack/layer_{{i}}/{name}/scale",))
    for hf, name in (
      ("post_attention_layernorm", "attention_norm"),
      ("post_feedforward_layernorm", "mlp_norm"),
    )
  ],
)
KINDS = {"olmo2": ("Olmo2ForCausalLM",)}


def theirs(config: olmo2.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: their architecture lacks a part.
  """
  fixed = dict(qk_normed=True, qkv_biased=False, window=None)
  settings.agree("olmo2", config, **fixed)
  return llama.common(config, "olmo2", *KINDS["olmo2"])


def ours(s: Settings) -> olmo2.Config:
  """The way back."""
  s.expect("attention_bias", False)
  return olmo2.Config(**llama.common_of(s))
