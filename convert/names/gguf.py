"""What GGUF files call the settings and tensors of the Llama kin.

They are translated to the names of transformers, which all else here knows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.settings import Settings

# general.architecture -> model_type and class of transformers.
KINDS = {
  "llama": ("llama", "LlamaForCausalLM"),
  "qwen2": ("qwen2", "Qwen2ForCausalLM"),
  "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
_TENSORS = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
}
_OF_LAYER = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}


def settings(said: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict:
  """The metadata of a file as a config.json of transformers.

  Raises:
    ValueError: an architecture, a key or a value that is not known here.
  """
  kind = said.get("general.architecture")
  if kind not in KINDS:
    raise ValueError(
      f"the file is of architecture {kind!r}; of GGUF this house reads "
      f"{', '.join(KINDS)}."
    )
  own = {
    key.removeprefix(f"{kind}."): _plain(value)
    for key, value in said.items()
    if key.startswith(f"{kind}.")
  }
  s = Settings(own, f"the metadata ({kind}.*)")
  model_type, cls = KINDS[kind]
  n_heads, d_model = s.take("attention.head_count"), s.take("embedding_length")
  d_head = s.take("attention.key_length", d_model // n_heads)
  s.expect("attention.value_length", d_head)
  s.expect("rope.dimension_count", d_head)
  n_rows = tensors["token_embd.weight"].shape[0]
  s.expect("vocab_size", n_rows)
  length = s.take("context_length")
  scaling = _scaling(s, length)
  s.finish()
  return {
    "architectures": [cls],
    "model_type": model_type,
    "vocab_size": n_rows,
    "hidden_size": d_model,
    "num_hidden_layers": s.take("block_count"),
    "num_attention_heads": n_heads,
    "num_key_value_heads": s.take("attention.head_count_kv", n_heads),
    "head_dim": d_head,
    "intermediate_size": s.take("feed_forward_length"),
    "rms_norm_eps": s.take("attention.layer_norm_rms_epsilon"),
    "tie_word_embeddings": "output.weight" not in tensors,
    "max_position_embeddings": length,
    "rope_parameters": {
      "rope_theta": s.take("rope.freq_base", 10_000.0),
      **scaling,
    },
  }


def _scaling(s: Settings, length: int) -> dict[str, Any]:
  for key in (
    "block_count", "attention.head_count_kv", "feed_forward_length",
    "attention.layer_norm_rms_epsilon", "rope.freq_base",
  ):  # fmt: skip
    s.take(key, None)
  kind = s.expect("rope.scaling.type", "none", "linear", "yarn")
  if kind == "none":
    return {"rope_type": "default"}
  found = {"rope_type": kind, "factor": s.take("rope.scaling.factor")}
  if kind == "yarn":
    original = s.take("rope.scaling.original_context_length", length)
    found["original_max_position_embeddings"] = original
  s.take("rope.scaling.finetuned", None)
  return found


def _plain(value: Any) -> Any:
  """A float32 as the shortest decimal that it is: 1e-5, not 9.99999975e-6."""
  return float(str(np.float32(value))) if type(value) is float else value


def theirs(name: str) -> str:
  """What transformers calls a tensor; a name that is not known stays."""
  stem, _, last = name.rpartition(".")
  if stem in _TENSORS:
    return f"{_TENSORS[stem]}.{last}"
  parts = stem.split(".")
  if len(parts) == 3 and parts[0] == "blk" and parts[2] in _OF_LAYER:
    return f"model.layers.{parts[1]}.{_OF_LAYER[parts[2]]}.{last}"
  return name


def unpermuted(name: str, x: np.ndarray, n_heads: int, n_kv: int) -> np.ndarray:
  """Queries and keys of Llama with the pairs (i, i + H/2), as we turn them.

  llama.cpp turns neighbours, and lays the rows of each head so.
  """
  heads = {"q_proj": n_heads, "k_proj": n_kv}.get(name.split(".")[-2])
  if heads is None:
    return x
  pairs = x.reshape(heads, -1, 2, *x.shape[1:])
  return pairs.swapaxes(1, 2).reshape(x.shape)
