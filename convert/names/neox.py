"""GPT-NeoX and Pythia."""

from typing import Any

from convert.names import gpt, rotary
from convert.names.row import Row, affine, fused
from convert.settings import Settings
from models import neox

_THEIRS = "gpt_neox.layers.{i}."
_OURS = "stack/layer_{i}/"
ROWS = (
  Row("gpt_neox.embed_in.weight", ("embed/table",), 1),
  Row("lm_head.weight", ("head/table",), 1),
  *affine("gpt_neox.final_layer_norm", "norm"),
  *affine(_THEIRS + "input_layernorm", _OURS + "attention_norm"),
  *affine(_THEIRS + "post_attention_layernorm", _OURS + "mlp_norm"),
  *fused(_THEIRS + "attention.query_key_value", _OURS + "attention/"),
  *affine(_THEIRS + "attention.dense", _OURS + "attention/o", 2),
  *affine(_THEIRS + "mlp.dense_h_to_4h", _OURS + "mlp/up", 1),
  *affine(_THEIRS + "mlp.dense_4h_to_h", _OURS + "mlp/down", 1),
)
UNUSED = (r".*\.attention\.(masked_)?bias",)  # the causal mask
KINDS = {"gpt_neox": ("GPTNeoXForCausalLM",)}


def in_files(config: neox.Config) -> tuple[Row, ...]:
  """The rows of a file, where the head has its older name."""
  del config
  head = Row("embed_out.weight", ("head/table",), 1)
  return tuple(head if row.ours == head.ours else row for row in ROWS)


def theirs(config: neox.Config) -> dict[str, Any]:
  """The keys of config.json."""
  c = config
  return {
    "architectures": [*KINDS["gpt_neox"]],
    "model_type": "gpt_neox",
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_hidden_layers": c.n_layers,
    "num_attention_heads": c.n_heads,
    "intermediate_size": c.d_ff,
    "hidden_act": gpt.ACTIVATIONS[c.activation],
    "layer_norm_eps": c.norm_epsilon,
    "use_parallel_residual": c.branches == "parallel",
    "tie_word_embeddings": c.tied,
    **rotary.theirs(c.rope_theta, c.rope_scaling, c.max_length, c.rotary_share),
  }


def ours(s: Settings) -> neox.Config:
  """The way back."""
  s.expect("attention_bias", True)
  parallel = s.take("use_parallel_residual", True)
  return neox.Config(
    vocab_size=s.take("vocab_size", 50_432),
    d_model=s.take("hidden_size", 6144),
    n_layers=s.take("num_hidden_layers", 44),
    n_heads=s.take("num_attention_heads", 64),
    d_ff=s.take("intermediate_size", 24_576),
    norm_epsilon=s.take("layer_norm_eps", 1e-5),
    activation=gpt.activation(s, "hidden_act", "gelu"),
    branches="parallel" if parallel else "sequential",
    tied=s.take("tie_word_embeddings", False),
    **rotary.ours(
      s,
      theta=s.take("rotary_emb_base", 10_000.0),
      share=s.take("rotary_pct", 0.25),
    ),
  )
