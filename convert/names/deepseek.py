"""DeepSeek-V2 and V3."""

import dataclasses
from typing import Any

from convert.names import llama, mixtral
from convert.names.row import Row, linear
from models import deepseek


def _rows() -> tuple[Row, ...]:
  def of_layer(ours):
    theirs = "model.layers.{i}."
    attn, inner = theirs + "self_attn.", ours + "attention/"
    norms = {
      theirs + "input_layernorm": ours + "attention_norm",
      theirs + "post_attention_layernorm": ours + "mlp_norm",
      attn + "q_a_layernorm": inner + "q_norm",
      attn + "kv_a_layernorm": inner + "kv_norm",
    }
    kv_down = (inner + "kv_down", inner + "k_rotary")
    kv_up = (inner + "k_up", inner + "v_up")
    return (
      *[Row(f"{hf}.weight", (f"{name}/scale",)) for hf, name in norms.items()],
      linear(attn + "q_proj", inner + "q"),
      linear(attn + "q_a_proj", inner + "q_down"),
      linear(attn + "q_b_proj", inner + "q_up"),
      Row(attn + "kv_a_proj_with_mqa.weight", kv_down, 1, True),
      Row(attn + "kv_b_proj.weight", kv_up, 1, True, n_common=1),
      linear(attn + "o_proj", inner + "o", 2),
      *[
        linear(f"{theirs}mlp.{hf}{x}_proj", f"{ours}mlp/{name}{x}")
        for x in ("gate", "up", "down")
        for hf, name in (("", ""), ("shared_experts.", "shared/"))
      ],
    )

  theirs, ours = "model.layers.{i}.mlp.", "stack/layer_{j}/mlp/"
  moved = [
    dataclasses.replace(
      row, ours=tuple(name.replace("{i}", "{j}") for name in row.ours)
    )
    for row in mixtral.ROWS
    if ".mlp." in row.theirs
  ]
  return (
    *[row for row in llama.ROWS if "{i}" not in row.theirs],
    *of_layer("dense/layer_{i}/"),
    # Of experts, "gate" and its kind are stacks: other rows say how.
    *[
      row
      for row in of_layer("stack/layer_{j}/")
      if ".mlp." not in row.theirs or "shared" in row.theirs
    ],
    *moved,
    Row(theirs + "gate.e_score_correction_bias", (ours + "bias",)),
  )


ROWS = _rows()


def theirs(config: deepseek.Config) -> dict[str, Any]:
  """The keys of config.json."""
  c, e, a = config, config.experts, config.attention
  if e.scores == "sigmoid":
    kind = ("DeepseekV3", "deepseek_v3")
    extra = {"num_mtp_layers": 0}
  else:
    kind = ("DeepseekV2", "deepseek_v2")
    is_limited = e.n_groups > 1
    extra = {"topk_method": "group_limited_greedy" if is_limited else "greedy"}
  rotary = llama.rope(c.rope_theta, c.rope_scaling, c.max_length)
  if a.mscale:  # as published: their ratio is the factor of the phases, 1
    del rotary["rope_parameters"]["attention_factor"]
    rotary["rope_parameters"] |= {
      "mscale": a.mscale,
      "mscale_all_dim": a.mscale,
    }
  return {
    "architectures": [f"{kind[0]}ForCausalLM"],
    "model_type": kind[1],
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_hidden_layers": c.n_layers,
    "num_attention_heads": c.n_heads,
    "num_key_value_heads": c.n_heads,
    "q_lora_rank": a.q_rank,
    "kv_lora_rank": a.kv_rank,
    "qk_nope_head_dim": a.d_plain,
    "qk_rope_head_dim": a.d_rotary,
    "v_head_dim": a.d_value,
    "intermediate_size": c.d_ff,
    "moe_intermediate_size": c.d_expert,
    "first_k_dense_replace": c.n_dense,
    "n_routed_experts": e.n_experts,
    "num_experts_per_tok": e.n_active,
    "n_shared_experts": e.n_shared,
    "routed_scaling_factor": e.gate_scale,
    "norm_topk_prob": e.gates_normed,
    "n_group": e.n_groups,
    "topk_group": e.n_active_groups,
    "rms_norm_eps": c.norm_epsilon,
    "tie_word_embeddings": c.tied,
    **rotary,
    **extra,
  }
