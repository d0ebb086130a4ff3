"""Which file of `convert.names` is of which family, and what each has.

ROWS    which tensor of theirs is which of ours
theirs  our Config -> the keys of their config.json
"""

from types import ModuleType

from convert.names import deepseek, gpt, llama, mixtral
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
