"""Heads of decoders: classes of texts and of tokens, of any family of theirs.

A class for labels has the tensors of the class for words but its head.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from convert.names.row import Row, linear
from convert.settings import Settings
from models import families
from models.layers import heads

_ENDS = {
  "texts": "ForSequenceClassification",
  "tokens": "ForTokenClassification",
}
_STEMS = {"Gemma3": "Gemma3Text"}  # which have another one with labels
_LACKING = {  # stem -> what theirs do not have
  "DeepseekV2": ("tokens",),
  "Gemma3Text": ("tokens",),
  "Mamba2": ("texts", "tokens"),
  "Olmo2": ("tokens",),
  "OPT": ("tokens",),
}
_CLASSIFIERS = ("gpt", "neox", "bloom", "mpt", "falcon")  # else it is "score"


def rows(config: families.Config) -> tuple[Row, ...]:
  """Which tensor of theirs is which of ours; none of a model without heads."""
  if not (families.is_causal(config) and families.kinds(config)):
    return ()
  is_other = families.name(config) in _CLASSIFIERS
  name = "classifier" if is_other else "score"
  return (
    linear("score", "heads/texts/w", 1),
    linear(name, "heads/tokens/w", 1),
    Row(f"{name}.bias", ("heads/tokens/bias",)),
  )


def theirs(config: families.Config, said: dict[str, Any]) -> dict[str, Any]:
  """The keys of config.json, of those that a model of words has.

  Raises:
    ValueError: no class of theirs has these heads.
  """
  kinds = families.kinds(config)
  if not (families.is_causal(config) and kinds):
    return said
  (words,) = said["architectures"]
  found = [n for n, (_, kind) in _classes([words]).items() if (kind,) == kinds]
  if not found:
    raise ValueError(
      f"heads.kinds={kinds}: transformers has no such class beside {words}."
    )
  return {
    **said,
    "architectures": found,
    "num_labels": config.heads.n_labels,
  }


def plain(architecture: str, classes: Iterable[str]) -> str:
  """The class for words of one for labels; any other stays what it is."""
  return _classes(classes).get(architecture, (architecture,))[0]


def ours(
  s: Settings, config: families.Config, classes: Iterable[str]
) -> families.Config:
  """A config as `theirs` gave it, with the heads that its class has."""
  named = s.take("architectures", None) or ("",)
  if named[0] not in (known := _classes(classes)):
    return config
  n_labels = s.take("num_labels", None) or len(s.take("id2label", None) or {})
  kinds = (known[named[0]][1],)
  return dataclasses.replace(
    config, heads=heads.Labels(kinds=kinds, n_labels=n_labels or 2)
  )


def _classes(of_words: Iterable[str]) -> dict[str, tuple[str, str]]:
  """Their class for labels -> that for words, and the kind of its labels."""
  found = {}
  for name in of_words:
    stem, is_decoder = re.subn("(ForCausalLM|LMHeadModel)$", "", name)
    stem = _STEMS.get(stem, stem)
    for kind, end in _ENDS.items():
      if is_decoder and kind not in _LACKING.get(stem, ()):
        found[f"{stem}{end}"] = name, kind
  return found
