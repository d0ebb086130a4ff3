"""The door of a converter: a verb, and flags that say from where to where."""

import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

import jax
from absl import flags

from configs import door

# Every converter takes of these what it needs.
SRC = flags.DEFINE_string("src", "", "what to read of another house")
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "a run, or a checkpoint")
OUT = flags.DEFINE_string("out", "", "directory to make")
DTYPE = flags.DEFINE_enum(
  "dtype", "", ["", "float32", "bfloat16", "float16"], "of the numbers there"
)


def run(verbs: Mapping[str, Callable[[], None]], usage: str) -> NoReturn:
  """Does what the first argument says; mistakes are told in plain words.

  Args:
    verbs: name -> what reads its flags and works.
    usage: the docstring of the module, for --help.
  """
  with door.plain_mistakes():
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
      print(usage.strip())
      sys.exit(0)
    try:
      verb, *rest = flags.FLAGS([sys.argv[0], *arguments])[1:] or [""]
    except flags.Error as error:
      raise ValueError(str(error)) from error
    if verb not in verbs or rest:
      raise ValueError(
        f"expected {' or '.join(verbs)} and flags, got {arguments}; --help "
        "says which."
      )
    jax.config.update("jax_platforms", "cpu")  # nothing is computed
    verbs[verb]()
  sys.exit(0)


def given(flag: flags.FlagHolder[str]) -> str:
  """The value of a flag that has to be given.

  Raises:
    ValueError: it was not.
  """
  if not flag.value:
    raise ValueError(f"--{flag.name}=PATH is missing; --help says more.")
  return flag.value
