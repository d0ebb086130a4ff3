"""Mixtral, Qwen2-MoE and Qwen3-MoE."""

from typing import Any

from convert import settings
from convert.names import llama
from convert.names.row import Row, expert_by_expert, linear
from convert.settings import Settings
from models import mixtral
from models.layers import moe


def _rows() -> tuple[Row, ...]:
  theirs, ours = "model.layers.{i}.mlp.", "stack/layer_{i}/mlp/"
  wide = (ours + "gate", ours + "up")
  return (
    *[row for row in llama.ROWS if ".mlp." not in row.theirs],
    linear(theirs + "gate", ours + "router"),
    Row(theirs + "experts.gate_up_proj", wide, 1, True, 1),
    Row(theirs + "experts.down_proj", (ours + "down",), 1, True, 1),
    *[
      linear(f"{theirs}shared_expert.{x}_proj", f"{ours}shared/{x}")
      for x in ("gate", "up", "down")
    ],
    linear(theirs + "shared_expert_gate", ours + "shared_gate"),
  )


ROWS = _rows()


def in_files(config: mixtral.Config) -> tuple[Row, ...]:
  """The rows of a file, which lists expert by expert."""
  theirs, ours = "model.layers.{i}.", "stack/layer_{i}/mlp"
  if config.qk_normed or config.experts.n_shared:  # Qwen's
    names = ("gate_proj", "up_proj", "down_proj")
    return expert_by_expert(ROWS, theirs + "mlp.experts", names, ours)
  theirs += "block_sparse_moe"
  rows = expert_by_expert(ROWS, theirs + ".experts", ("w1", "w3", "w2"), ours)
  router = linear(theirs + ".gate", ours + "/router")
  return tuple(router if row.ours == router.ours else row for row in rows)


KINDS = {
  "mixtral": ("MixtralForCausalLM",),
  "qwen2_moe": ("Qwen2MoeForCausalLM",),
  "qwen3_moe": ("Qwen3MoeForCausalLM",),
}
# Of our experts, what theirs never are.
_PLAIN = dict(scores="softmax", gate_scale=1.0, biased=False, n_groups=1)


def theirs(config: mixtral.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: none of their architectures has these parts together.
  """
  c, e = config, config.experts
  kind = "qwen3_moe" if c.qk_normed else "mixtral"
  kind = "qwen2_moe" if e.n_shared else kind
  is_second = kind == "qwen2_moe"
  all_alike = dict(pattern=c.pattern[:1] * len(c.pattern))
  settings.agree(kind, c, qkv_biased=is_second, **all_alike)
  settings.agree(kind, e, **_PLAIN, shared_gated=is_second)
  found = {
    **llama.common(c, kind, *KINDS[kind]),
    "num_experts_per_tok": e.n_active,
    "sliding_window": c.window,
  }
  if kind == "mixtral":
    settings.agree(kind, e, gates_normed=True)
    return {**found, "num_local_experts": e.n_experts}
  if is_second:
    settings.agree(kind, c, qk_normed=False, window=None)
    found["shared_expert_intermediate_size"] = e.n_shared * c.d_ff
  return {
    **found,
    "use_sliding_window": c.window is not None,
    "num_experts": e.n_experts,
    "moe_intermediate_size": c.d_ff,
    "norm_topk_prob": e.gates_normed,
  }


def ours(s: Settings) -> mixtral.Config:
  """The way back."""
  if s.take("model_type") == "mixtral":
    return mixtral.Config(
      **llama.common_of(s, theta=1e6, length=131_072),
      **llama.sliding(s.take("sliding_window", None)),
      experts=moe.Config(
        n_experts=s.take("num_local_experts", s.take("num_experts", 8)),
        n_active=s.take("num_experts_per_tok", 2),
      ),
    )
  found = llama.common_of(s, length=32_768)
  is_second = s.take("model_type") == "qwen2_moe"
  s.expect("attention_bias", False)
  s.expect("decoder_sparse_step", 1)  # every layer has experts
  s.expect("mlp_only_layers", [], None)
  window = s.take("sliding_window", 4096)
  s.take("max_window_layers", None)  # not read there: all layers or none
  if is_second:
    s.expect("qkv_bias", True)
    s.expect("use_sliding_window", False)
    s.expect("layer_types", None, ["full_attention"] * found["n_layers"])
  found |= llama.sliding(
    window if s.take("use_sliding_window", False) else None
  )
  n_experts, n_active, d_ff = (60, 4, 1408) if is_second else (128, 8, 768)
  found["d_ff"] = s.take("moe_intermediate_size", d_ff)
  experts = moe.Config(
    n_experts=s.take("num_experts", s.take("num_local_experts", n_experts)),
    n_active=s.take("num_experts_per_tok", n_active),
    gates_normed=s.take("norm_topk_prob", False),
    n_shared=_n_shared(s, found["d_ff"]) if is_second else 0,
    shared_gated=is_second,
  )
  return mixtral.Config(
    **found, qkv_biased=is_second, qk_normed=not is_second, experts=experts
  )


def _n_shared(s: Settings, d_ff: int) -> int:
  """How many experts' width the one for all tokens has."""
  width = s.take("shared_expert_intermediate_size", 5632)
  if width % d_ff:
    raise ValueError(
      f"config.json says shared_expert_intermediate_size={width}, which is no "
      f"multiple of moe_intermediate_size={d_ff}: ours is so many experts."
    )
  return width // d_ff
