"""Llama, Mistral, Qwen 2 and 3, SmolLM 2 and 3."""

import itertools
from collections.abc import Sequence
from typing import Any

from convert import settings
from convert.names import rotary
from convert.names.row import Row, linear
from convert.settings import Settings
from models import llama


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


KINDS = {
  "llama": ("LlamaForCausalLM",),
  "mistral": ("MistralForCausalLM",),
  "qwen2": ("Qwen2ForCausalLM",),
  "qwen3": ("Qwen3ForCausalLM",),
  "smollm3": ("SmolLM3ForCausalLM",),
}
_LAYERS = {"full": "full_attention", "sliding": "sliding_attention"}


def theirs(config: llama.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: none of their architectures has these parts together.
  """
  c = config
  if c.qk_normed:
    kind = "qwen3"
  elif c.qkv_biased:
    kind = "qwen2"
  elif "unrotated" in c.pattern:
    kind = "smollm3"
  else:
    kind = "llama" if c.window is None else "mistral"
  fixed = {"qkv_biased": kind == "qwen2"}
  if kind == "mistral":
    fixed["pattern"] = ("sliding",) * len(c.pattern)
  elif kind == "smollm3":
    fixed["window"] = None
  else:
    fixed["pattern"] = tuple(k for k in c.pattern if k != "unrotated")
  settings.agree(kind, c, **fixed)
  if kind == "mistral":
    extra = {"sliding_window": c.window}
  elif kind == "smollm3":
    turned = [int(k != "unrotated") for k in _layers(c)]
    # Padding is the tokenizer's to say; it would be 128,004.
    extra = {"no_rope_layers": turned, "pad_token_id": None}
  else:
    extra = windows(c)
  return {**common(c, kind, *KINDS[kind]), **extra}


def common(config: llama.Config, kind: str, cls: str) -> dict[str, Any]:
  """What Llama's kin have in common, under the name of one of them."""
  c = config
  return {
    "architectures": [cls],
    "model_type": kind,
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_hidden_layers": c.n_layers,
    "num_attention_heads": c.n_heads,
    "num_key_value_heads": c.n_kv_heads,
    "head_dim": c.d_head,
    "intermediate_size": c.d_ff,
    "hidden_act": "silu",
    "rms_norm_eps": c.norm_epsilon,
    "tie_word_embeddings": c.tied,
    **rotary.theirs(c.rope_theta, c.rope_scaling, c.max_length),
  }


def windows(config: llama.Config) -> dict[str, Any]:
  """Which layers see a window only, as Qwen says it."""
  c = config
  if c.window is None:
    return {}
  return {
    "use_sliding_window": True,
    "sliding_window": c.window,
    "layer_types": kinds_of(c),
  }


def kinds_of(config: llama.Config) -> list[str]:
  """What they call every layer."""
  return [_LAYERS[kind] for kind in _layers(config)]


def _layers(config: llama.Config) -> list[str]:
  """The kind of every layer."""
  repeated = itertools.cycle(config.pattern)
  return list(itertools.islice(repeated, config.n_layers))


# The longest text, where a config.json does not say it.
_LENGTHS = {
  "llama": 2048,
  "mistral": 131_072,
  "qwen2": 32_768,
  "qwen3": 32_768,
  "smollm3": 32_768,
}


def ours(s: Settings) -> llama.Config:
  """The way back."""
  kind = s.take("model_type")
  third = dict(theta=2e6, tied=True) if kind == "smollm3" else {}
  found = common_of(s, length=_LENGTHS[kind], **third)
  s.expect("attention_bias", False)  # it is of the output too
  s.expect("mlp_bias", False)
  if kind == "mistral":
    found |= sliding(s.take("sliding_window", 4096))
  elif kind in ("qwen2", "qwen3"):
    found |= windows_of(s, found["n_layers"])
  elif kind == "smollm3":
    found |= _unrotated(s, found["n_layers"])
  return llama.Config(
    **found, qkv_biased=kind == "qwen2", qk_normed=kind == "qwen3"
  )


def _unrotated(s: Settings, n_layers: int) -> dict[str, Any]:
  """Which layers of SmolLM3 turn nothing; none of them slides."""
  s.expect("use_sliding_window", False)
  s.take("sliding_window", None)
  s.expect("layer_types", None, ["full_attention"] * n_layers)
  every = s.take("no_rope_layer_interval", 4)
  turning = s.take("no_rope_layers", None)
  if turning is None:
    turning = [(i + 1) % every for i in range(n_layers)]
  kinds = ["full" if turns else "unrotated" for turns in turning]
  return {"pattern": repeated(kinds)}


def common_of(
  s: Settings,
  *,
  activations: Sequence[str] = ("silu",),
  epsilon: str = "rms_norm_eps",
  tied: bool = False,
  **defaults: Any,
) -> dict[str, Any]:
  """The fields that Llama's kin have in common.

  Args:
    s: their config.json.
    activations: their names of the only one; the first is their default.
    epsilon: their name of that of the norms.
    tied: their default.
    **defaults: of rotary.ours.
  """
  d_model, n_heads = s.take("hidden_size"), s.take("num_attention_heads")
  s.expect("hidden_act", *activations)
  return {
    "vocab_size": s.take("vocab_size"),
    "d_model": d_model,
    "n_layers": s.take("num_hidden_layers"),
    "n_heads": n_heads,
    "n_kv_heads": s.take("num_key_value_heads", None) or n_heads,
    "d_head": s.take("head_dim", None) or d_model // n_heads,
    "d_ff": s.take("intermediate_size"),
    "norm_epsilon": s.take(epsilon, 1e-6),
    "tied": s.take("tie_word_embeddings", tied),
    **rotary.ours(s, **defaults),
  }


def sliding(window: int | None) -> dict[str, Any]:
  """The fields of a model whose layers all see a window, or none do."""
  if window is None:
    return {}
  return {"window": window, "pattern": ("sliding",)}


def windows_of(s: Settings, n_layers: int) -> dict[str, Any]:
  """`windows`, and what older ones say with max_window_layers."""
  window = s.take("sliding_window", 4096)
  first = s.take("max_window_layers", 28)
  kinds = s.take("layer_types", None)
  if not s.take("use_sliding_window", False) or window is None:
    return {}
  if kinds is None:
    kinds = [
      _LAYERS["sliding" if i >= first else "full"] for i in range(n_layers)
    ]
  return windowed(window, kinds)


def windowed(window: int | None, kinds: Sequence[str]) -> dict[str, Any]:
  """The fields of a model whose layers they call so."""
  names = {theirs: ours for ours, theirs in _LAYERS.items()}
  if unknown := set(kinds) - set(names):
    raise ValueError(f"config.json has layer_types {sorted(unknown)}.")
  if _LAYERS["sliding"] not in kinds or window is None:
    return {}
  return {"window": window, "pattern": repeated([names[k] for k in kinds])}


def repeated(kinds: Sequence[str]) -> tuple[str, ...]:
  """The shortest pattern that, repeated, is all of the layers.

  The last repetition may be cut short.
  """
  n = next(
    n
    for n in range(1, len(kinds) + 1)
    if all(kind == kinds[i % n] for i, kind in enumerate(kinds))
  )
  return tuple(kinds[:n])
