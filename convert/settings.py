"""Another house's config.json, read so that nothing in it is overlooked.

Whoever builds one of our configs takes the keys that it knows. A key that is
left over at the end, and is not one of those that change no number, stands for
something that the model would lack: it is refused by name.
"""

import json
from collections.abc import Mapping
from typing import Any

_REQUIRED = object()
# What says nothing of the forward pass: how the model was made, trained,
# labelled, kept and sampled from. Tokens with a meaning are the tokenizer's.
_SILENT = frozenset(
  """
  architectures model_type transformers_version _name_or_path _commit_hash
  auto_map dtype torch_dtype torchscript use_cache use_bfloat16 return_dict
  output_attentions output_hidden_states output_router_logits is_decoder
  _attn_implementation _attn_implementation_autoset attn_implementation
  _experts_implementation use_flash_attention gradient_checkpointing
  pretraining_tp chunk_size_feed_forward tokenizer_class prefix
  initializer_range initializer_factor init_std classifier_dropout
  attention_dropout hidden_dropout embd_pdrop attn_pdrop resid_pdrop dropout
  embedding_dropout activation_dropout attention_probs_dropout_prob
  hidden_dropout_prob dropout_rate layerdrop encoder_layerdrop
  decoder_layerdrop classifier_dropout_prob router_jitter_noise
  router_aux_loss_coef router_z_loss_coef aux_loss_alpha seq_aux ep_size
  bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id
  mask_token_id image_token_index decoder_start_token_id
  forced_bos_token_id forced_eos_token_id bad_words_ids suppress_tokens
  begin_suppress_tokens
  id2label label2id num_labels problem_type finetuning_task
  task_specific_params
  temperature top_k top_p typical_p do_sample max_length min_length num_beams
  num_beam_groups num_return_sequences no_repeat_ngram_size
  encoder_no_repeat_ngram_size repetition_penalty diversity_penalty
  length_penalty early_stopping remove_invalid_values output_scores
  return_dict_in_generate exponential_decay_length_penalty tf_legacy_loss
  """.split()
)


class Settings:
  """The keys of a config.json, each of which somebody has to take.

  Args:
    values: what was read.
    place: where it stands, for messages.
  """

  def __init__(self, values: Mapping[str, Any], place: str = "config.json"):
    self._values = values
    self._place = place
    self._taken: set[str] = set()
    self._nested: dict[str, Settings] = {}

  def take(self, key: str, default: Any = _REQUIRED) -> Any:
    """The value of a key, or their default where it is not said.

    A null is None, which need not be what the default says; where the default
    is a float, JSON's 1 is 1.0.

    Raises:
      ValueError: there is no such key, and no default.
    """
    self._taken.add(key)
    if key in self._values:
      value = self._values[key]
      wants_float = type(default) is float and type(value) is int
      return float(value) if wants_float else value
    if default is _REQUIRED:
      raise ValueError(
        f"{self._place} lacks {key}, which the architecture cannot do without: "
        "take the file from where the weights come from."
      )
    return default

  def expect(self, key: str, *allowed: Any) -> Any:
    """The value of a key that may have only few; the first one is the default.

    Raises:
      ValueError: it has another.
    """
    value = self.take(key, allowed[0])
    if value not in allowed:
      words = " or ".join(map(json.dumps, allowed))
      raise ValueError(
        f"{self._place} says {key}={json.dumps(value)}, and this house has "
        f"only {words}: the model would give other numbers."
      )
    return value

  def nested(self, key: str) -> "Settings":
    """The mapping under a key, whose keys have to be taken too; {} for none.

    Raises:
      ValueError: it is no mapping.
    """
    if key not in self._nested:
      value = self.take(key, None) or {}
      place = f"{self._place}: {key}"
      if not isinstance(value, Mapping):
        raise ValueError(f"{place} is {value!r}, where a mapping should be.")
      self._nested[key] = Settings(value, place)
    return self._nested[key]

  def finish(self) -> None:
    """Sees that all was taken that says something.

    Raises:
      ValueError: names the keys that nobody took.
    """
    left = {
      key: value
      for key, value in self._values.items()
      if key not in self._taken | _SILENT and value not in (None, {}, [])
    }
    if left:
      words = ", ".join(f"{key}={_short(v)}" for key, v in left.items())
      raise ValueError(
        f"{self._place} says {words}: this house does not know what that does "
        "to the model, and a model without it gives other numbers."
      )
    for nested in self._nested.values():
      nested.finish()


def agree(kind: str, config: Any, **fixed: Any) -> None:
  """Sees that a config of ours has what an architecture of theirs takes as given.

  Args:
    kind: their model_type.
    config: ours, or a part of it.
    **fixed: field -> the only value that theirs can have.

  Raises:
    ValueError: it has another, which their model would not show.
  """
  for name, value in fixed.items():
    if getattr(config, name) != value:
      raise ValueError(
        f"{name}={getattr(config, name)!r} has no place in transformers' "
        f"{kind}, which has {value!r}: no architecture of theirs is this model."
      )


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:60]}..."
