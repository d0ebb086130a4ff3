"""Phi-3 and Phi-4: queries, keys and values in one matrix, gate and up too.

Their LongRoPE chooses its factors by the length of each text, ours by that of
the longest text that the model shall read: see max_length.
"""

from typing import Any

from convert import settings
from convert.names import llama, rotary
from convert.names.row import Row
from convert.settings import Settings
from models import phi3

_THEIRS = "model.layers.{i}."
_OURS = "stack/layer_{i}/"
_FUSED = {
  "self_attn.qkv_proj": [f"attention/{x}" for x in "qkv"],
  "mlp.gate_up_proj": ["mlp/gate", "mlp/up"],
}
ROWS = (
  *[
    row
    for row in llama.ROWS
    if not row.theirs.split(".")[-2].startswith(
      ("q_", "k_", "v_", "gate", "up")
    )
  ],
  *[
    Row(
      f"{_THEIRS}{hf}.weight",
      tuple(_OURS + name for name in names),
      1,
      transposed=True,
    )
    for hf, names in _FUSED.items()
  ],
)
KINDS = {"phi3": ("Phi3ForCausalLM",)}


def theirs(config: phi3.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: their architecture lacks a part.
  """
  c, pattern = config, ("full",) if config.window is None else ("sliding",)
  fixed = dict(qk_normed=False, qkv_biased=False)
  settings.agree("phi3", c, **fixed, pattern=pattern * len(c.pattern))
  found = llama.common(c, "phi3", *KINDS["phi3"])
  found["pad_token_id"] = None  # the tokenizer's to say; 32,000 unsaid
  original = getattr(c.rope_scaling, "original_length", None)
  if original is not None:
    found["original_max_position_embeddings"] = original
  return {
    **found,
    "sliding_window": c.window,
    **rotary.theirs(c.rope_theta, c.rope_scaling, c.max_length, c.rotary_share),
  }


def ours(s: Settings) -> phi3.Config:
  """The way back."""
  s.expect("attention_bias", False)
  found = llama.common_of(s, length=4096, share=1.0)
  s.take("original_max_position_embeddings", None)  # of no use unscaled
  found |= llama.sliding(s.take("sliding_window", None))
  return phi3.Config(**found)
