"""Which file of `convert.names` is of which family, and what each has.

KINDS   their model_type -> the classes of theirs whose weights we hold
ROWS    which tensor of theirs is which of ours; `rows(config)` where the config
        has a say in it
theirs  our Config -> the keys of their config.json
ours    their config.json (convert/settings.py) -> our Config

and, where it is needed:

in_files  our Config -> the rows as files have them, which may be older
UNUSED    patterns of what files hold and the model does not
"""

import difflib
import re
from types import ModuleType
from typing import Any

from convert.names import (
  bart,
  bert,
  bigbird,
  bloom,
  deepseek,
  distilbert,
  falcon,
  gemma,
  gpt,
  labels,
  llama,
  longformer,
  mamba2,
  mixtral,
  mpt,
  neox,
  olmo2,
  opt,
  phi3,
  roberta,
  stablelm,
  t5,
)
from convert.names.row import Row
from convert.settings import Settings
from models import families

FAMILIES: dict[str, ModuleType] = {
  "llama": llama,
  "gpt": gpt,
  "mixtral": mixtral,
  "deepseek": deepseek,
  "gemma": gemma,
  "olmo2": olmo2,
  "phi3": phi3,
  "stablelm": stablelm,
  "neox": neox,
  "opt": opt,
  "bloom": bloom,
  "mpt": mpt,
  "falcon": falcon,
  "mamba2": mamba2,
  "bert": bert,
  "roberta": roberta,
  "distilbert": distilbert,
  "longformer": longformer,
  "bigbird": bigbird,
  "t5": t5,
  "bart": bart,
}

# What older versions kept beside the weights, and what follows from the config.
_BUFFERS = (r".*rotary_emb\.inv_freq", r".*\.position_ids")


def of(config: families.Config) -> ModuleType:
  """The names of a config's family.

  Raises:
    ValueError: transformers has no such models.
  """
  name = families.name(config)
  if name not in FAMILIES:
    raise ValueError(
      f"model.name={name}: transformers has no such models. It knows "
      f"{', '.join(FAMILIES)}."
    )
  return FAMILIES[name]


def rows(config: families.Config) -> tuple[Row, ...]:
  """Which tensor of theirs is which of ours."""
  names = of(config)
  own = names.rows(config) if hasattr(names, "rows") else names.ROWS
  return (*own, *labels.rows(config))


def theirs(config: families.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: none of their architectures is this model.
  """
  return labels.theirs(config, of(config).theirs(config))


def in_files(config: families.Config) -> tuple[Row, ...]:
  """The rows of a config's family as their files have them."""
  names = of(config)
  if not hasattr(names, "in_files"):
    return rows(config)
  return (*names.in_files(config), *labels.rows(config))


def unused(config: families.Config) -> re.Pattern:
  """What to pass over in a file of a config's family."""
  own = getattr(of(config), "UNUSED", ())
  return re.compile(
    "|".join(_BUFFERS + tuple(x.format(config=config) for x in own))
  )


def read(settings: Settings) -> families.Config:
  """What a config.json of theirs is of ours.

  Raises:
    ValueError: an architecture, a key or a value that we do not have.
  """
  kinds = {kind: names for names in FAMILIES.values() for kind in names.KINDS}
  kind = str(settings.take("model_type"))
  if kind not in kinds:
    near = difflib.get_close_matches(kind, kinds, 1)
    hint = f"; the nearest is {near[0]}" if near else ""
    raise ValueError(
      f"config.json is of model_type {kind!r}, which this house does not have"
      f"{hint}. There are {', '.join(sorted(kinds))}."
    )
  classes = kinds[kind].KINDS[kind]
  for architecture in settings.take("architectures", None) or ():
    if labels.plain(architecture, classes) not in classes:
      raise ValueError(
        f"config.json is of architecture {architecture!r}; of {kind} this house "
        f"has {' and '.join(classes)}."
      )
  try:
    config = labels.ours(settings, kinds[kind].ours(settings), classes)
  except TypeError as error:
    raise ValueError(
      f"config.json holds a value of a wrong type: {error}."
    ) from error
  settings.finish()
  return config
