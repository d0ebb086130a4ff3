"""DeepSeek-V2 and V3."""

import dataclasses
from typing import Any

from convert import settings
from convert.names import llama, mixtral, rotary
from convert.names.row import Row, expert_by_expert, linear
from convert.settings import Settings
from models import deepseek
from models.layers import latent, moe


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
    if ".mlp." in row.theirs and "shared" not in row.theirs
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
# What predicts the token after next, which only training of ours has.
UNUSED = (r"model\.layers\.{config.n_layers}\..*",)


KINDS = {
  "deepseek_v2": ("DeepseekV2ForCausalLM",),
  "deepseek_v3": ("DeepseekV3ForCausalLM",),
}


def in_files(config: deepseek.Config) -> tuple[Row, ...]:
  """The rows of a file, which lists expert by expert."""
  del config
  names = ("gate_proj", "up_proj", "down_proj")
  theirs, ours = "model.layers.{i}.mlp.experts", "stack/layer_{j}/mlp"
  return expert_by_expert(ROWS, theirs, names, ours)


def theirs(config: deepseek.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: neither of their architectures has these parts together.
  """
  c, e, a = config, config.experts, config.attention
  if e.scores == "sigmoid":
    kind, extra = "deepseek_v3", {"num_nextn_predict_layers": 0}
    settings.agree(kind, e, biased=True)
    if e.n_groups > 1:
      settings.agree(kind, e, n_ranking=2)
  else:
    is_limited = e.n_groups > 1
    kind = "deepseek_v2"
    extra = {"topk_method": "group_limited_greedy" if is_limited else "greedy"}
    settings.agree(kind, e, biased=False, gates_normed=False, n_ranking=1)
  positions = rotary.theirs(c.rope_theta, c.rope_scaling, c.max_length)
  if a.mscale:
    inner = positions["rope_parameters"]
    inner |= {"mscale": a.mscale, "mscale_all_dim": a.mscale}
    if inner["attention_factor"] == 1.0:  # as published: it is their ratio
      del inner["attention_factor"]
  return {
    "architectures": [*KINDS[kind]],
    "model_type": kind,
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
    "hidden_act": "silu",
    "rms_norm_eps": c.norm_epsilon,
    "tie_word_embeddings": c.tied,
    **positions,
    **extra,
  }


def ours(s: Settings) -> deepseek.Config:
  """The way back; the module of the token after next is not read."""
  is_third = s.take("model_type") == "deepseek_v3"
  for key, value in (
    ("hidden_act", "silu"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("rope_interleave", True),
    ("moe_layer_freq", 1),
    ("scoring_func", "sigmoid" if is_third else "softmax"),
  ):
    s.expect(key, value)
  for key in ("head_dim", "qk_head_dim", "num_key_value_heads"):
    s.take(key, None)  # follow from others
  for key in ("num_nextn_predict_layers", "num_mtp_layers"):
    s.take(key, None)
  found = rotary.ours(s, length=4096 if is_third else 2048)
  mscale = rotary.parameters(s).take("mscale_all_dim", None) or 0.0
  return deepseek.Config(
    vocab_size=s.take("vocab_size"),
    d_model=s.take("hidden_size"),
    n_layers=s.take("num_hidden_layers"),
    n_heads=s.take("num_attention_heads"),
    d_ff=s.take("intermediate_size"),
    d_expert=s.take("moe_intermediate_size"),
    n_dense=s.take("first_k_dense_replace", 3 if is_third else 0),
    experts=_third(s) if is_third else _second(s),
    attention=latent.Config(
      q_rank=s.take("q_lora_rank", 1536),
      kv_rank=s.take("kv_lora_rank", 512),
      d_plain=s.take("qk_nope_head_dim", 128),
      d_rotary=s.take("qk_rope_head_dim", 64),
      d_value=s.take("v_head_dim", 128),
      mscale=mscale if "rope_scaling" in found else 0.0,
    ),
    norm_epsilon=s.take("rms_norm_eps", 1e-6),
    tied=s.take("tie_word_embeddings", False),
    **found,
  )


def _second(s: Settings) -> moe.Config:
  method = s.expect("topk_method", "greedy", "group_limited_greedy")
  s.expect("norm_topk_prob", False)
  groups = s.take("n_group", None), s.take("topk_group", None)
  n_groups, n_active_groups = (1, 1) if method == "greedy" else groups
  return moe.Config(
    n_experts=s.take("n_routed_experts", 64),
    n_active=s.take("num_experts_per_tok"),
    n_shared=s.take("n_shared_experts", 2) or 0,
    gates_normed=False,
    gate_scale=s.take("routed_scaling_factor", 1.0),
    n_groups=n_groups,
    n_active_groups=n_active_groups,
  )


def _third(s: Settings) -> moe.Config:
  s.expect("topk_method", "noaux_tc")
  n_groups = s.take("n_group", 8)
  return moe.Config(
    n_experts=s.take("n_routed_experts", 256),
    n_active=s.take("num_experts_per_tok", 8),
    n_shared=s.take("n_shared_experts", 1) or 0,
    scores="sigmoid",
    gates_normed=s.take("norm_topk_prob", True),
    gate_scale=s.take("routed_scaling_factor", 2.5),
    n_groups=n_groups,
    n_active_groups=s.take("topk_group", 4),
    n_ranking=2 if n_groups > 1 else 1,
    biased=True,
  )
