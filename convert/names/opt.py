"""OPT."""

from typing import Any

from convert.names import gpt
from convert.names.row import Row, affine
from convert.settings import Settings
from models import opt

_TOP = "model.decoder."
_THEIRS = _TOP + "layers.{i}."
_OURS = "stack/layer_{i}/"
ROWS = (
  Row(_TOP + "embed_tokens.weight", ("embed/table",), 1),
  Row(_TOP + "embed_positions.weight", ("position/table",), 1),
  *affine(_TOP + "final_layer_norm", "norm"),
  *affine(_THEIRS + "self_attn_layer_norm", _OURS + "attention_norm"),
  *affine(_THEIRS + "final_layer_norm", _OURS + "mlp_norm"),
  *[
    row
    for x in "qkv"
    for row in affine(
      f"{_THEIRS}self_attn.{x}_proj", f"{_OURS}attention/{x}", 1
    )
  ],
  *affine(_THEIRS + "self_attn.out_proj", _OURS + "attention/o", 2),
  *affine(_THEIRS + "fc1", _OURS + "mlp/up", 1),
  *affine(_THEIRS + "fc2", _OURS + "mlp/down", 1),
)
KINDS = {"opt": ("OPTForCausalLM",)}


def theirs(config: opt.Config) -> dict[str, Any]:
  """The keys of config.json."""
  c = config
  return {
    "architectures": [*KINDS["opt"]],
    "model_type": "opt",
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "word_embed_proj_dim": c.d_model,
    "num_hidden_layers": c.n_layers,
    "num_attention_heads": c.n_heads,
    "ffn_dim": c.d_ff,
    "max_position_embeddings": c.max_length,
    "activation_function": gpt.ACTIVATIONS[c.activation],
    "do_layer_norm_before": True,
    "tie_word_embeddings": True,
    "pad_token_id": 1,
  }


def ours(s: Settings) -> opt.Config:
  """The way back; their norms have the epsilon 1e-5, whatever is said."""
  d_model = s.take("hidden_size", 768)
  s.expect("word_embed_proj_dim", d_model, None)
  for key in (
    "do_layer_norm_before",
    "enable_bias",
    "layer_norm_elementwise_affine",
    "tie_word_embeddings",
  ):
    s.expect(key, True)
  s.expect("_remove_final_layer_norm", False)
  return opt.Config(
    vocab_size=s.take("vocab_size", 50_272),
    max_length=s.take("max_position_embeddings", 2048),
    d_model=d_model,
    n_layers=s.take("num_hidden_layers", 12),
    n_heads=s.take("num_attention_heads", 12),
    d_ff=s.take("ffn_dim", 3072),
    activation=gpt.activation(s, "activation_function", "relu"),
  )
