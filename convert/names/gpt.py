"""GPT-2."""

from typing import Any

from convert.names.row import Row
from convert.settings import Settings
from models import gpt


def _rows() -> tuple[Row, ...]:
  theirs, ours = "transformer.h.{i}.", "stack/layer_{i}/"
  attention = ours + "attention/"
  norms = {
    "transformer.ln_f": "norm",
    theirs + "ln_1": ours + "attention_norm",
    theirs + "ln_2": ours + "mlp_norm",
  }
  matrices = {
    "attn.c_attn": ([attention + x for x in "qkv"], 1),
    "attn.c_proj": ([attention + "o"], 2),
    "mlp.c_fc": ([ours + "mlp/up"], 1),
    "mlp.c_proj": ([ours + "mlp/down"], 1),
  }
  return (
    Row("transformer.wte.weight", ("embed/table",), 1),
    Row("transformer.wpe.weight", ("position/table",), 1),
    *[Row(f"{hf}.weight", (f"{name}/scale",)) for hf, name in norms.items()],
    *[Row(f"{hf}.bias", (f"{name}/bias",)) for hf, name in norms.items()],
    *[
      Row(f"{theirs}{hf}.weight", tuple(names), n_in)
      for hf, (names, n_in) in matrices.items()
    ],
    *[
      Row(f"{theirs}{hf}.bias", tuple(f"{name}_bias" for name in names))
      for hf, (names, _) in matrices.items()
    ],
  )


ROWS = _rows()
UNUSED = (r".*\.attn\.(masked_)?bias",)  # the causal mask


KINDS = {"gpt2": ("GPT2LMHeadModel",)}
ACTIVATIONS = {
  "relu": "relu",
  "silu": "silu",
  "gelu": "gelu",
  "gelu_tanh": "gelu_new",
}


def theirs(config: gpt.Config) -> dict[str, Any]:
  """The keys of config.json."""
  c = config
  return {
    "architectures": [*KINDS["gpt2"]],
    "model_type": "gpt2",
    "vocab_size": c.vocab_size,
    "n_embd": c.d_model,
    "n_layer": c.n_layers,
    "n_head": c.n_heads,
    "n_inner": c.d_ff,
    "n_positions": c.max_length,
    "layer_norm_epsilon": c.norm_epsilon,
    "activation_function": ACTIVATIONS[c.activation],
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
  }


def ours(s: Settings) -> gpt.Config:
  """The way back."""
  d_model = s.take("n_embd", 768)
  s.take("n_ctx", None)  # older: n_positions once more
  s.expect("tie_word_embeddings", True)
  s.expect("scale_attn_weights", True)
  s.expect("scale_attn_by_inverse_layer_idx", False)
  s.expect("add_cross_attention", False)
  s.take("reorder_and_upcast_attn", False)  # the same product, in fp32
  for key in ("type", "use_proj", "activation", "proj_to_labels"):
    s.take(f"summary_{key}", None)  # of a head that GPT2LMHeadModel lacks
  s.take("summary_first_dropout", None)
  return gpt.Config(
    vocab_size=s.take("vocab_size", 50_257),
    max_length=s.take("n_positions", 1024),
    d_model=d_model,
    n_layers=s.take("n_layer", 12),
    n_heads=s.take("n_head", 12),
    d_ff=s.take("n_inner", None) or 4 * d_model,
    norm_epsilon=s.take("layer_norm_epsilon", 1e-5),
    activation=activation(s, "activation_function", "gelu_new"),
  )


def activation(s: Settings, key: str, default: str) -> str:
  """Our name of the activation under a key."""
  names = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
  names["gelu_pytorch_tanh"] = "gelu_tanh"
  return names[s.expect(key, default, *names)]
