"""GPT-2."""

from typing import Any

from convert.names.row import Row
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


def theirs(config: gpt.Config) -> dict[str, Any]:
  """The keys of config.json."""
  c = config
  return {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": c.vocab_size,
    "n_embd": c.d_model,
    "n_layer": c.n_layers,
    "n_head": c.n_heads,
    "n_inner": c.d_ff,
    "n_positions": c.max_length,
    "layer_norm_epsilon": c.norm_epsilon,
    "bos_token_id": None,
    "eos_token_id": None,
  }
