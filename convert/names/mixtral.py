"""Mixtral and Qwen3-MoE."""

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
  )


ROWS = _rows()


def in_files(config: mixtral.Config) -> tuple[Row, ...]:
  """The rows of a file, which lists expert by expert."""
  theirs, ours = "model.layers.{i}.", "stack/layer_{i}/mlp"
  if config.qk_normed:
    names = ("gate_proj", "up_proj", "down_proj")
    return expert_by_expert(ROWS, theirs + "mlp.experts", names, ours)
  theirs += "block_sparse_moe"
  rows = expert_by_expert(ROWS, theirs + ".experts", ("w1", "w3", "w2"), ours)
  router = linear(theirs + ".gate", ours + "/router")
  return tuple(router if row.ours == router.ours else row for row in rows)


KINDS = {
  "mixtral": ("MixtralForCausalLM",),
  "qwen3_moe": ("Qwen3MoeForCausalLM",),
}
# Of our experts, what theirs never are.
_PLAIN = dict(n_shared=0, scores="softmax", gate_scale=1.0, biased=False)


def theirs(config: mixtral.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: none of their architectures has these parts together.
  """
  c, e = config, config.experts
  kind = "qwen3_moe" if c.qk_normed else "mixtral"
  all_alike = dict(pattern=c.pattern[:1] * len(c.pattern))
  settings.agree(kind, c, qkv_biased=False, **all_alike)
  settings.agree(kind, e, **_PLAIN, n_groups=1)
  found = {
    **llama.common(c, kind, *KINDS[kind]),
    "num_experts_per_tok": e.n_active,
    "sliding_window": c.window,
  }
  if kind == "mixtral":
    settings.agree(kind, e, gates_normed=True)
    return {**found, "num_local_experts": e.n_experts}
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
  s.expect("attention_bias", False)
  s.expect("decoder_sparse_step", 1)  # every layer has experts
  s.expect("mlp_only_layers", [], None)
  window = s.take("sliding_window", 4096)
  s.take("max_window_layers", None)  # not read there: all layers or none
  found |= llama.sliding(
    window if s.take("use_sliding_window", False) else None
  )
  experts = moe.Config(
    n_experts=s.take("num_experts", s.take("num_local_experts", 128)),
    n_active=s.take("num_experts_per_tok", 8),
    gates_normed=s.take("norm_topk_prob", False),
  )
  found["d_ff"] = s.take("moe_intermediate_size", 768)
  return mixtral.Config(**found, qk_normed=True, experts=experts)
