"""What texts begin with, in files of peft: prompts, P-tuning, prefixes.

Theirs holds one tensor, prompt_embeddings, which is what the model reads: [P,
D] vectors, or [P, L * 2 * K * H] keys and values. The networks of P-tuning and
of prefix_projection=True are not in it. So an adapter with a network leaves as
what its network makes, and what comes in has none. Extra letter: P tokens
before every text.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jax import numpy as jnp

from convert import header
from models import deepseek, falcon, families, gemma, prefix
from models.prefix import Prefix, Prompt

# What theirs calls them.
KINDS = {"PROMPT_TUNING": Prompt, "P_TUNING": Prompt, "PREFIX_TUNING": Prefix}
# Keys of theirs that are read, or that change no number.
READ = frozenset({
  "peft_type", "num_virtual_tokens", "token_dim", "num_attention_heads",
  "num_layers", "num_transformer_submodules", "prefix_projection",
  "encoder_reparameterization_type", "encoder_hidden_size",
  "encoder_num_layers", "encoder_dropout", "init_weights", "prompt_tuning_init",
  "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
  "task_type", "base_model_name_or_path", "inference_mode", "peft_version",
  "revision", "auto_mapping",
})  # fmt: skip
# What these say of one network, one decoder, and texts that it writes.
NEUTRAL = {
  "encoder_reparameterization_type": "MLP",
  "num_transformer_submodules": 1,
  "task_type": "CAUSAL_LM",
}
_NAME = "prompt_embeddings"


def give(
  config: Prompt | Prefix, model: families.Config, own: prefix.Own
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Their tensors, and what their config says of these.

  Args:
    config: of the adapter.
    model: that it adapts.
    own: its leaves.

  Raises:
    ValueError: peft reads it as something else before this model.
  """
  _check_model(config, model)
  own = {name: jnp.asarray(x) for name, x in own.items()}
  made, network = config.made(model, own), config.d_network
  said = {"num_virtual_tokens": config.n_tokens, **_sizes(config, model)}
  said["num_transformer_submodules"] = 1
  if isinstance(config, Prefix):
    both = np.stack([made["keys"], made["values"]], 1)
    rows = np.moveaxis(both, 2, 0).reshape(config.n_tokens, -1)
    said["peft_type"] = "PREFIX_TUNING"
    said["prefix_projection"] = network is not None
  else:
    rows = np.asarray(made["rows"])
    said["peft_type"] = "P_TUNING" if network else "PROMPT_TUNING"
  if network:
    said["encoder_hidden_size"] = network
  return {_NAME: rows}, said


def take(
  src: epath.Path,
  settings: Mapping[str, Any],
  there: Mapping[str, Any],
  model: families.Config,
) -> tuple[Prompt | Prefix, prefix.Own]:
  """The config and the leaves of an adapter of theirs.

  Args:
    src: where it lies.
    settings: of its config, whose keys are known.
    there: its tensors, by name.
    model: that it adapts.

  Raises:
    ValueError: it is of another model, or holds more than texts begin with.
  """
  if there.keys() != {_NAME}:
    raise ValueError(
      f"{src} holds {header.few(there)}, where {_NAME} is all that is known: a "
      "table or a head beside it cannot be taken. Save it anew with "
      "save_embedding_layers=False."
    )
  rows = there[_NAME].read()
  if rows.ndim != 2:
    raise ValueError(f"{src} has {_NAME} {rows.shape}, which is no table.")
  config = KINDS[settings["peft_type"]](n_tokens=rows.shape[0])
  _check_model(config, model)
  wanted = {"num_virtual_tokens": config.n_tokens, **_sizes(config, model)}
  for key, value in wanted.items():
    if settings.get(key) not in (None, value):
      raise ValueError(
        f"{src} says {key}={settings[key]}, and it is {value} of its tensor "
        "and the base: it adapts another model, or the file is damaged."
      )
  width = wanted["token_dim"]
  if isinstance(config, Prefix):
    width *= 2 * model.n_layers
  if rows.shape[1:] != (width,):
    raise ValueError(
      f"{src} has {_NAME} {rows.shape}, and the base takes "
      f"{(config.n_tokens, width)}: it adapts another model."
    )
  return config, {"rows": rows}


def _sizes(config: Prompt | Prefix, model: families.Config) -> dict[str, int]:
  """What theirs says of the base: of a prefix, of its keys and values."""
  width, heads = model.d_model, model.n_heads
  if isinstance(config, Prefix):
    heads, each, _ = model.kept
    width = heads * each
  return {
    "token_dim": width,
    "num_attention_heads": heads,
    "num_layers": model.n_layers,
  }


def _check_model(config: Prompt | Prefix, model: families.Config) -> None:
  """Checks that the two houses read the same before this model."""
  prefix.check(model)
  name = families.name(model)
  if families.answers(model):
    raise ValueError(
      f"{name} with model.heads={model.heads}: prompts and prefixes of peft "
      "are known before models that write, and not beside heads."
    )
  scaling = getattr(model, "rope_scaling", None)
  if isinstance(config, Prompt):
    if isinstance(model, gemma.Config):
      raise ValueError(
        f"{name} multiplies its embeddings by sqrt(d_model), and peft puts "
        "prompts before that or behind, by the version of transformers. Take a "
        "prefix."
      )
    if scaling is not None and scaling.kind == "dynamic":
      raise ValueError(
        "model.rope_scaling.kind='dynamic' turns a prompt by the length of "
        "what is read with it: in peft that is the text, and here the prompt "
        "alone. Take a prefix."
      )
  elif isinstance(model, deepseek.Config) or _repeats(model):
    raise ValueError(
      f"{name} with model.kept={model.kept} keeps less than transformers, "
      f"which has keys and values of all {model.n_heads} heads. Take a prompt, "
      "or LoRA."
    )


def _repeats(model: families.Config) -> bool:
  """Whether theirs keeps what a group of heads shares once for each of them."""
  if not isinstance(model, falcon.Config):
    return False
  is_new = model.branches == "parallel" or model.n_kv_heads > 1
  return is_new and model.n_kv_heads < model.n_heads
