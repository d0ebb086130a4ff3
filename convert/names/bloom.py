"""BLOOM, whose config.json does not say how long texts may be."""

from typing import Any

from convert import settings
from convert.names.row import Row, affine, fused
from convert.settings import Settings
from models import bloom

_THEIRS = "transformer.h.{i}."
_OURS = "stack/layer_{i}/"
ROWS = (
  Row("transformer.word_embeddings.weight", ("embed/table",), 1),
  *affine("transformer.word_embeddings_layernorm", "embed_norm"),
  *affine("transformer.ln_f", "norm"),
  *affine(_THEIRS + "input_layernorm", _OURS + "attention_norm"),
  *affine(_THEIRS + "post_attention_layernorm", _OURS + "mlp_norm"),
  *fused(_THEIRS + "self_attention.query_key_value", _OURS + "attention/"),
  *affine(_THEIRS + "self_attention.dense", _OURS + "attention/o", 2),
  *affine(_THEIRS + "mlp.dense_h_to_4h", _OURS + "mlp/up", 1),
  *affine(_THEIRS + "mlp.dense_4h_to_h", _OURS + "mlp/down", 1),
)
KINDS = {"bloom": ("BloomForCausalLM",)}


def theirs(config: bloom.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: their architecture has other sizes.
  """
  c = config
  fixed = dict(d_ff=4 * c.d_model, activation="gelu_tanh")
  settings.agree("bloom", c, **fixed)
  return {
    "architectures": [*KINDS["bloom"]],
    "model_type": "bloom",
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "n_layer": c.n_layers,
    "n_head": c.n_heads,
    "layer_norm_epsilon": c.norm_epsilon,
    "seq_length": c.max_length,
    "tie_word_embeddings": True,
  }


def ours(s: Settings) -> bloom.Config:
  """The way back."""
  s.expect("apply_residual_connection_post_layernorm", False)
  s.expect("tie_word_embeddings", True)
  for key in (  # of how it was trained, and how exactly it is computed
    "slow_but_exact",
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "unk_token_id",
    "offset_alibi",
    "skip_bias_add",
    "skip_bias_add_qkv",
  ):
    s.take(key, None)
  d_model = s.take("hidden_size", s.take("n_embed", 64))
  return bloom.Config(
    vocab_size=s.take("vocab_size", 250_880),
    max_length=s.take("seq_length", 2048),
    d_model=d_model,
    n_layers=s.take("n_layer", s.take("num_hidden_layers", 2)),
    n_heads=s.take("n_head", s.take("num_attention_heads", 8)),
    d_ff=4 * d_model,
    norm_epsilon=s.take("layer_norm_epsilon", 1e-5),
  )
