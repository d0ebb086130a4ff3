"""Gemma 1, 2 and 3 (text)."""

from typing import Any

from convert import settings
from convert.names import llama, rotary
from convert.names.row import Row
from convert.settings import Settings
from models import gemma

_THEIRS = "model.layers.{i}."
_OURS = "stack/layer_{i}/"
_SANDWICH = {
  "input_layernorm": "attention_before",
  "post_attention_layernorm": "attention_after",
  "pre_feedforward_layernorm": "mlp_before",
  "post_feedforward_layernorm": "mlp_after",
}
ROWS = (
  *llama.ROWS,
  *[
    Row(f"{_THEIRS}{hf}.weight", (f"{_OURS}{name}/scale",))
    for hf, name in _SANDWICH.items()
  ],
)
KINDS = {
  "gemma": ("GemmaForCausalLM",),
  "gemma2": ("Gemma2ForCausalLM",),
  "gemma3_text": ("Gemma3ForCausalLM",),
}
_TANH = "gelu_pytorch_tanh"


def theirs(config: gemma.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: none of their architectures has these parts together.
  """
  c = config
  kind = "gemma2" if c.sandwiched else "gemma"
  kind = "gemma3_text" if c.qk_normed else kind
  settings.agree(kind, c, qkv_biased=False, sandwiched=kind != "gemma")
  found = llama.common(c, kind, *KINDS[kind])
  if kind == "gemma":
    plain = ("query_size", "softcap", "final_softcap", "window")
    settings.agree(kind, c, **dict.fromkeys(plain))
    return {**found, "hidden_act": _TANH}
  del found["hidden_act"]
  found |= {
    "hidden_activation": _TANH,
    "query_pre_attn_scalar": c.query_size or c.d_head,
    "attn_logit_softcapping": c.softcap,
    "final_logit_softcapping": c.final_softcap,
    "sliding_window": c.window,
    "layer_types": llama.kinds_of(c),
  }
  if kind == "gemma2":
    settings.agree(kind, c, local_theta=None)
    return found
  scaled = found["rope_parameters"]
  local = {"rope_theta": c.local_theta or c.rope_theta, "rope_type": "default"}
  if c.local_theta is None:
    settings.agree(kind, c, rope_scaling=None)
  by_kind = {"full_attention": scaled, "sliding_attention": local}
  return {**found, "rope_parameters": by_kind}


def ours(s: Settings) -> gemma.Config:
  """The way back."""
  kind = s.take("model_type")
  s.expect("attention_bias", False)
  s.expect("use_bidirectional_attention", None, False)
  s.expect("hidden_activation", _TANH, None)
  s.take("cache_implementation", None)
  defaults = dict(activations=(_TANH, "gelu"), tied=True)
  if kind == "gemma":
    return gemma.Config(**llama.common_of(s, length=8192, **defaults))
  is_third = kind == "gemma3_text"
  if is_third:
    found = _both_thetas(s, defaults)
  else:
    found = llama.common_of(s, length=8192, **defaults)
  size = s.take("query_pre_attn_scalar", 256)
  caps = (None, None) if is_third else (50.0, 30.0)
  return gemma.Config(
    **found,
    **_windows(s, found["n_layers"], 6 if is_third else 2),
    query_size=None if size == found["d_head"] else size,
    softcap=s.take("attn_logit_softcapping", caps[0]),
    final_softcap=s.take("final_logit_softcapping", caps[1]),
    sandwiched=True,
    qk_normed=is_third,
  )


def _both_thetas(s: Settings, defaults: dict[str, Any]) -> dict[str, Any]:
  """The fields in common, with the rotary positions of both kinds of layer."""
  new = s.nested("rope_parameters")
  if new.take("full_attention", None):
    full, local = new.nested("full_attention"), new.nested("sliding_attention")
    local.expect("rope_type", "default")
  else:
    full, local = rotary.parameters(s), s
  key = "rope_local_base_freq" if local is s else "rope_theta"
  theta = local.take(key, 10_000.0)
  found = llama.common_of(s, theta=1e6, length=131_072, p=full, **defaults)
  found["local_theta"] = theta
  return found


def _windows(s: Settings, n_layers: int, every: int) -> dict[str, Any]:
  """Which layers slide: all but every so manieth, if nothing else is said."""
  every = s.take("sliding_window_pattern", every)
  every = s.take("_sliding_window_pattern", every)  # as they write it
  window, kinds = s.take("sliding_window", 4096), s.take("layer_types", None)
  if kinds is None:
    kinds = [
      "sliding_attention" if (i + 1) % every else "full_attention"
      for i in range(n_layers)
    ]
  return llama.windowed(window, kinds)
