"""BART."""

from typing import Any

from convert import settings
from convert.names.row import Row, linear
from convert.settings import Settings
from models import bart


def _rows(theirs: str, ours: str, stack: str) -> tuple[Row, ...]:
  """Of the encoder, or of the decoder; `ours` begins the names of its parts."""
  place, here = f"model.{theirs}.layers.{{i}}.", f"{stack}/layer_{{i}}/"
  linears = {
    f"{place}{hf}.{x}_proj": f"{here}{name}/{x[0]}"
    for hf, name in (("self_attn", "attention"), ("encoder_attn", "cross"))
    for x in ("q", "k", "v", "out")
  }
  linears |= {f"{place}fc1": f"{here}mlp/up", f"{place}fc2": f"{here}mlp/down"}
  norms = {
    f"model.{theirs}.layernorm_embedding": f"{ours}embed_norm",
    f"{place}self_attn_layer_norm": f"{here}attention_norm",
    f"{place}encoder_attn_layer_norm": f"{here}cross_norm",
    f"{place}final_layer_norm": f"{here}mlp_norm",
  }
  position = f"model.{theirs}.embed_positions.weight"
  return (
    Row(position, (f"{ours}position/table",), 1),
    *[
      linear(hf, name, 2 if name.endswith("/o") else 1)
      for hf, name in linears.items()
    ],
    *[Row(f"{hf}.bias", (f"{name}_bias",)) for hf, name in linears.items()],
    *[Row(f"{hf}.weight", (f"{name}/scale",)) for hf, name in norms.items()],
    *[Row(f"{hf}.bias", (f"{name}/bias",)) for hf, name in norms.items()],
  )


ROWS = (
  Row("model.shared.weight", ("embed/table",), 1),
  *_rows("encoder", "encoder_", "encoder"),
  *_rows("decoder", "", "stack"),
)
UNUSED = (r"final_logits_bias",)  # zeros, which nothing trains
KINDS = {"bart": ("BartForConditionalGeneration",)}
_ACTIVATIONS = {
  "relu": "relu",
  "silu": "silu",
  "gelu": "gelu",
  "gelu_tanh": "gelu_new",
}


def theirs(config: bart.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: norms have an epsilon that theirs cannot have.
  """
  c = config
  settings.agree("bart", c, norm_epsilon=1e-5)
  return {
    "architectures": [*KINDS["bart"]],
    "model_type": "bart",
    "vocab_size": c.vocab_size,
    "d_model": c.d_model,
    "encoder_layers": c.n_encoder_layers,
    "decoder_layers": c.n_layers,
    "encoder_attention_heads": c.n_heads,
    "decoder_attention_heads": c.n_heads,
    "encoder_ffn_dim": c.d_ff,
    "decoder_ffn_dim": c.d_ff,
    "max_position_embeddings": c.max_length,
    "activation_function": _ACTIVATIONS[c.activation],
    "scale_embedding": False,
    "tie_word_embeddings": True,
    "is_encoder_decoder": True,
    "decoder_start_token_id": c.start_id,
    "forced_eos_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
  }


def ours(s: Settings) -> bart.Config:
  """The way back."""
  names = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
  activation = s.expect("activation_function", "gelu", *names)
  n_heads = s.take("encoder_attention_heads", 16)
  d_ff = s.take("encoder_ffn_dim", 4096)
  s.expect("decoder_attention_heads", n_heads)
  s.expect("decoder_ffn_dim", d_ff)
  s.expect("scale_embedding", False)
  # As they were first written; all these say what BART always is.
  s.expect("add_bias_logits", False)
  s.expect("add_final_layer_norm", False)
  s.expect("normalize_before", False)
  s.expect("normalize_embedding", True)
  s.expect("static_position_embeddings", False)
  s.expect("tie_word_embeddings", True)
  s.expect("is_encoder_decoder", True)
  s.take("num_hidden_layers", None)  # encoder_layers once more
  s.take("gradient_checkpointing", None)
  return bart.Config(
    vocab_size=s.take("vocab_size", 50_265),
    max_length=s.take("max_position_embeddings", 1024),
    d_model=s.take("d_model", 1024),
    n_encoder_layers=s.take("encoder_layers", 12),
    n_layers=s.take("decoder_layers", 12),
    n_heads=n_heads,
    d_ff=d_ff,
    activation=names[activation],
    start_id=s.take("decoder_start_token_id", 2),
  )
