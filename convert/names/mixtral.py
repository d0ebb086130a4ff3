"""Mixtral and Qwen3-MoE."""

from typing import Any

from convert.names import llama
from convert.names.row import Row, linear
from models import mixtral


def _rows() -> tuple[Row, ...]:
  theirs, ours = "model.layers.{i}.mlp.", "stack/layer_{i}/mlp/"
  wide = (ours + "gate", ours + "up")
  return (
    *[row for row in llama.ROWS if ".mlp." not in row.theirs],
    linear(theirs + "gate", ours + "router"),
    Row(theirs + "experts.gate_up_proj", wide, 1, True, 1),
    Row(theirs + "experts.down_proj", (ours + "down",), 1, True, 1),
  )


ROWS = _rows()


def theirs(config: mixtral.Config) -> dict[str, Any]:
  """The keys of config.json."""
  e = config.experts
  if config.qk_normed:
    return {
      **llama.common(config, "Qwen3Moe", "qwen3_moe"),
      "num_experts": e.n_experts,
      "num_experts_per_tok": e.n_active,
      "moe_intermediate_size": config.d_ff,
      "norm_topk_prob": e.gates_normed,
    }
  return {
    **llama.common(config, "Mixtral", "mixtral"),
    "num_local_experts": e.n_experts,
    "num_experts_per_tok": e.n_active,
  }
