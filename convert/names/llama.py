"""Llama, Mistral, Qwen 2 and 3, SmolLM2."""

from typing import Any

from convert.names.row import Row, linear
from models import llama
from models.layers.position import Scaling


def _rows() -> tuple[Row, ...]:
  theirs, ours = "model.layers.{i}.", "stack/layer_{i}/"
  attention = ours + "attention/"
  qkv = [(theirs + f"self_attn.{x}_proj", attention + x) for x in "qkv"]
  return (
    Row("model.embed_tokens.weight", ("embed/table",), 1),
    Row("lm_head.weight", ("head/table",), 1),
    Row("model.norm.weight", ("norm/scale",)),
    Row(theirs + "input_layernorm.weight", (ours + "attention_norm/scale",)),
    Row(theirs + "post_attention_layernorm.weight", (ours + "mlp_norm/scale",)),
    *[linear(*pair) for pair in qkv],
    *[Row(f"{hf}.bias", (f"{name}_bias",)) for hf, name in qkv],
    linear(theirs + "self_attn.o_proj", attention + "o", 2),
    *[
      Row(
        theirs + f"self_attn.{x}_norm.weight", (attention + f"{x}_norm/scale",)
      )
      for x in "qk"
    ],
    *[
      linear(theirs + f"mlp.{x}_proj", ours + f"mlp/{x}")
      for x in ("gate", "up", "down")
    ],
  )


ROWS = _rows()


def theirs(config: llama.Config) -> dict[str, Any]:
  """The keys of config.json."""
  c = config
  if c.qk_normed:
    kind, extra = ("Qwen3", "qwen3"), {}
  elif c.qkv_biased:
    kind, extra = ("Qwen2", "qwen2"), {}
  elif c.window is not None:
    kind, extra = ("Mistral", "mistral"), {"sliding_window": c.window}
  else:
    kind, extra = ("Llama", "llama"), {}
  return {**common(config, *kind), **extra}


def common(config: llama.Config, cls: str, model_type: str) -> dict[str, Any]:
  """What Llama's kin have in common, under the name of one of them."""
  c = config
  return {
    "architectures": [f"{cls}ForCausalLM"],
    "model_type": model_type,
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_hidden_layers": c.n_layers,
    "num_attention_heads": c.n_heads,
    "num_key_value_heads": c.n_kv_heads,
    "head_dim": c.d_head,
    "intermediate_size": c.d_ff,
    "rms_norm_eps": c.norm_epsilon,
    "tie_word_embeddings": c.tied,
    **rope(c.rope_theta, c.rope_scaling, c.max_length),
  }


def rope(theta: float, scaling: Scaling | None, length: int) -> dict[str, Any]:
  """Our rotary settings as theirs, for texts of `length` tokens.

  Their dynamic NTK has the factor f T / M - (f - 1) at T tokens, where it was
  trained on M: with M = T / 2 and f = factor - 1, that is our factor.
  """
  parameters = {"rope_theta": theta, "rope_type": "default"}
  if scaling is None:
    return {"rope_parameters": parameters, "max_position_embeddings": length}
  s = scaling
  parameters |= {"rope_type": s.kind, "factor": s.factor}
  if s.kind == "ntk":
    parameters |= {"rope_type": "dynamic", "factor": s.factor - 1}
    length //= 2
  if s.kind == "yarn":
    low, high = s.turns
    parameters |= {
      "beta_slow": low,
      "beta_fast": high,
      "attention_factor": s.attention_factor,
    }
  if s.kind == "llama3":
    low, high = s.turns
    parameters |= {"low_freq_factor": low, "high_freq_factor": high}
  if s.original_length is not None:
    parameters["original_max_position_embeddings"] = s.original_length
  return {"rope_parameters": parameters, "max_position_embeddings": length}
