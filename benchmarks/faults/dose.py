"""How every program of this room is run: a dose, figures, a verdict.

    if __name__ == "__main__":
      dose.run(poison, n=200, is_kept=lambda f: f["caught"] == f["injections"])

`--n N` sets the dose. The last line is JSON; the exit code is 1 where the
promise is not kept.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags
from etils import epath

_N = flags.DEFINE_integer("n", None, "the dose; the program knows its own")


def run(
  hurt: Callable[[int, epath.Path], dict[str, Any]],
  *,
  n: int,
  is_kept: Callable[[dict[str, Any]], bool],
) -> NoReturn:
  """Hurts n times in a scratch folder, prints, exits.

  Args:
    hurt: (dose, folder) -> figures.
    n: the full dose, where the command line gives none.
    is_kept: whether the figures are what is promised.
  """

  def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as folder:
      found = hurt(_N.value or n, epath.Path(folder))
    print(json.dumps(found))
    sys.exit(not is_kept(found))

  app.run(main)
