"""Which file of `convert.names` is of which family, and what each has.

KINDS   their model_type -> the classes of theirs whose weights we hold
ROWS    which tensor of theirs is which of ours
theirs  our Config -> the keys of their config.json
ours    their config.json (convert/settings.py) -> our Config
"""

import difflib
from types import ModuleType

from convert.names import deepseek, gpt, llama, mixtral
from convert.settings import Settings
from models import families

FAMILIES: dict[str, ModuleType] = {
  "llama": llama,
  "gpt": gpt,
  "mixtral": mixtral,
  "deepseek": deepseek,
}


def of(config: families.Config) -> ModuleType:
  """The names of a config's family."""
  return FAMILIES[families.name(config)]


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
    if architecture not in classes:
      raise ValueError(
        f"config.json is of architecture {architecture!r}; of {kind} this house "
        f"has {' and '.join(classes)}."
      )
  try:
    config = kinds[kind].ours(settings)
  except TypeError as error:
    raise ValueError(
      f"config.json holds a value of a wrong type: {error}."
    ) from error
  settings.finish()
  return config
