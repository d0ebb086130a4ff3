"""Falcon, in its older and its newer "decoder architecture"."""

from typing import Any

from convert import settings
from convert.names import gpt, rotary
from convert.names.row import Row, affine, fused
from convert.settings import Settings
from models import falcon

_THEIRS = "transformer.h.{i}."
_OURS = "stack/layer_{i}/"
ROWS = (
  Row("transformer.word_embeddings.weight", ("embed/table",), 1),
  Row("lm_head.weight", ("head/table",), 1),
  *affine("transformer.ln_f", "norm"),
  *affine(_THEIRS + "input_layernorm", _OURS + "attention_norm"),
  *affine(_THEIRS + "post_attention_layernorm", _OURS + "mlp_norm"),
  *affine(_THEIRS + "ln_attn", _OURS + "attention_alone"),
  *affine(_THEIRS + "ln_mlp", _OURS + "mlp_alone"),
  *fused(_THEIRS + "self_attention.query_key_value", _OURS + "attention/"),
  *affine(_THEIRS + "self_attention.dense", _OURS + "attention/o", 2),
  *affine(_THEIRS + "mlp.dense_h_to_4h", _OURS + "mlp/up", 1),
  *affine(_THEIRS + "mlp.dense_4h_to_h", _OURS + "mlp/down", 1),
)
KINDS = {"falcon": ("FalconForCausalLM",)}


def theirs(config: falcon.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: their architectures lack these parts together.
  """
  c = config
  is_new = c.branches == "parallel" or 1 < c.n_kv_heads < c.n_heads
  if is_new and c.branches == "sequential":
    settings.agree("falcon", c, branches="parallel")
  return {
    "architectures": [*KINDS["falcon"]],
    "model_type": "falcon",
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_hidden_layers": c.n_layers,
    "num_attention_heads": c.n_heads,
    "num_kv_heads": c.n_kv_heads,
    "ffn_hidden_size": c.d_ff,
    "activation": gpt.ACTIVATIONS[c.activation],
    "layer_norm_epsilon": c.norm_epsilon,
    "new_decoder_architecture": is_new,
    "num_ln_in_parallel_attn": (
      2 if c.branches == "parallel" else 1 if is_new else None
    ),
    "multi_query": c.n_kv_heads == 1,
    "parallel_attn": c.branches != "sequential",
    "bias": False,
    "alibi": False,
    "tie_word_embeddings": c.tied,
    **rotary.theirs(c.rope_theta, c.rope_scaling, c.max_length),
  }


def ours(s: Settings) -> falcon.Config:
  """The way back."""
  s.expect("bias", False)
  s.expect("alibi", False)
  d_model = s.take("hidden_size", 4544)
  n_heads = s.take("num_attention_heads", s.take("n_head", 71))
  is_new = s.take("new_decoder_architecture", False)
  n_kv_heads = s.take("num_kv_heads", s.take("n_head_kv", None)) or n_heads
  if not is_new:
    n_kv_heads = 1 if s.take("multi_query", True) else n_heads
  s.take("multi_query", None)
  parallel, n_norms = (
    s.take("parallel_attn", True),
    s.take("num_ln_in_parallel_attn", None),
  )
  if is_new:
    s.expect("parallel_attn", True)
    branches = "shared" if n_norms == 1 else "parallel"
  else:
    s.expect("num_ln_in_parallel_attn", None, 1)
    branches = "shared" if parallel else "sequential"
  return falcon.Config(
    vocab_size=s.take("vocab_size", 65_024),
    d_model=d_model,
    n_layers=s.take("num_hidden_layers", s.take("n_layer", 32)),
    n_heads=n_heads,
    n_kv_heads=n_kv_heads,
    d_ff=s.take("ffn_hidden_size", None) or 4 * d_model,
    norm_epsilon=s.take("layer_norm_epsilon", 1e-5),
    activation=gpt.activation(s, "activation", "gelu"),
    branches=branches,
    tied=s.take("tie_word_embeddings", True),
    **rotary.ours(s),
  )
