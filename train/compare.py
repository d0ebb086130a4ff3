"""Compares: runs by their curves; checkpoints by tasks, a judge, preferences.

    python -m train.compare runs/quick runs/wide

lays the losses of any number of runs over each other, against steps, tokens,
FLOPs and seconds, in one picture (--picture=FILE; compare.png beside the first),
tells which settings differ and where each ended, and ends with a line of JSON.

    python -m train.compare tasks runs/figures runs/others

takes two --results folders of `train.evaluate --task=...` and tells, for every
task and metric that both have, the difference on the same items: its paired
bootstrap interval and p, and McNemar's exact p where an item is right or wrong.

    python -m train.compare texts runs/figures runs/others 3

shows what both wrote about the first three items of such tasks.

    python -m train.compare judge runs/figures runs/others http://127.0.0.1:8000/v1 MODEL

has MODEL, behind any OpenAI-compatible address (the key is OPENAI_API_KEY), read
what both wrote in the same tasks, each pair in both orders; the verdicts go to
preferences.jsonl in the second folder.

    python -m train.compare rank runs/others/preferences.jsonl

tells who is stronger: Bradley-Terry with 95 % intervals, and Elo; the rows have
a, b and winner (a, b or tie).
"""

import sys
from collections.abc import Callable

from etils import epath

from configs import door
from data import rows as tables
from models import durable
from train.core import overlay
from train.evaluators import arena, judge, pairs

_PICTURE = "--picture="


def lay_over(words: list[str]) -> int:
  """Draws runs over each other, and tells how they differ.

  Raises:
    ValueError: fewer than two, or a folder that is no run.
  """
  folders = [word for word in words if not word.startswith("-")]
  given = [word for word in words if word.startswith(_PICTURE)]
  if len(folders) < 2 or len(folders) + len(given) < len(words):
    raise ValueError(_EXPECTED.format(words))
  picture = epath.Path(given[-1].removeprefix(_PICTURE)) if given else None
  overlay.show(folders, picture)
  return 0


def show(first: str, second: str) -> int:
  """Prints the rows."""
  print(pairs.text(pairs.rows(epath.Path(first), epath.Path(second))))
  return 0


def tell(first: str, second: str, n: str) -> int:
  """Prints what both wrote about the first items."""
  print(pairs.told(epath.Path(first), epath.Path(second), n), end="")
  return 0


def have_judged(first: str, second: str, address: str, model: str) -> int:
  """Has a judge read all that both wrote."""
  ask, folders = judge.client(address, model), map(epath.Path, (first, second))
  verdicts = [judge.judge(ask, *pair) for pair in pairs.written(*folders)]
  path = epath.Path(second) / "preferences.jsonl"
  durable.write_text(path, judge.lines(verdicts, first, second))
  for name, value in judge.score(verdicts)._asdict().items():
    print(f"{name:<10}{value:>6}")
  print(path)
  return 0


def rank(path: str) -> int:
  """Prints standings."""
  print(arena.text(arena.games(tables.read(path))))
  return 0


VERBS: dict[str, tuple[Callable[..., int], int]] = {
  "tasks": (show, 2),
  "texts": (tell, 3),
  "judge": (have_judged, 4),
  "rank": (rank, 1),
}


_EXPECTED = (
  "expected runs, as `RUN RUN ...`, or `tasks FIRST SECOND`, `texts FIRST SECOND "
  "N`, `judge FIRST SECOND ADDRESS MODEL` or `rank FILE`, got {}; --help says more."
)


def main(arguments: list[str]) -> int:
  """Does what the first argument says with the others, or lays runs over."""
  if {"-h", "--help"} & set(arguments):
    print(__doc__)
    return 0
  verb, *words = arguments or [""]
  if verb not in VERBS:
    return lay_over(arguments)
  act, n_words = VERBS[verb]
  if len(words) != n_words:
    raise ValueError(_EXPECTED.format(arguments))
  return act(*words)


if __name__ == "__main__":
  with door.plain_mistakes():
    sys.exit(main(sys.argv[1:]))
