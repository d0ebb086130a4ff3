"""Prompts in, text out as it comes.

    python -m serve.generate --workdir=runs/quick --prompt="def main("
    cat unfinished.py | python -m serve.generate --workdir=runs/quick

--workdir is a run, whose newest checkpoint is taken, or a checkpoint, which is
enough by itself. --prompt may be given several times: all texts are written
side by side and shown one after the other. Without it, the whole of the
standard input is one prompt. How to draw is --config.generate.FIELD=VALUE.
A model of two texts reads the prompt, and writes the other.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from absl import flags
from etils import epath

from configs import door
from data import pipeline
from data import tokenizer as tokenizers
from models import checkpoint, decode, sampling
from serve import text
from train.evaluators import samples

_PROMPTS = flags.DEFINE_multi_string(
  "prompt", None, "what the text begins with; may be repeated"
)

SECTIONS = {"generate": sampling.Config}


def main(config: door.Config, workdir: epath.Path) -> None:
  """Loads a checkpoint and continues the prompts."""
  path = checkpoint.find(workdir)
  print(f"reading {path}", file=sys.stderr)
  model, params = checkpoint.load(path)
  door.agree(
    config, path, SECTIONS, (), lambda line: print(line, file=sys.stderr)
  )
  trained = door.load(path / "config.json", {"batch": pipeline.Config})
  tokenizer = tokenizers.load(path)
  prompts = _PROMPTS.value or [sys.stdin.read()]
  ids, sources = samples.encode(model, tokenizer, prompts)
  clock = Clock()
  steps = decode.stream(
    model,
    params,
    ids,
    config.generate,
    end_ids=tokenizer.end_ids,
    sources=sources,
    prefixed=trained.batch.sees_sources,
  )
  stop = config.generate.stop
  pieces = text.rows(tokenizer, stop, len(prompts), clock.count(steps))
  begun = prompts if sources is None else [""] * len(prompts)
  for piece in in_turn(begun, pieces):
    print(piece, end="", flush=True)
  print(clock, file=sys.stderr)


def in_turn(
  prompts: Sequence[str], steps: Iterable[Sequence[str | None]]
) -> Iterator[str]:
  """What to show of texts that grow side by side: the first one first."""
  waiting = list(prompts)
  turn = 0
  for pieces in steps:
    for row, piece in enumerate(pieces):
      waiting[row] += piece or ""
    yield waiting[turn]
    waiting[turn] = ""
    while turn + 1 < len(prompts) and pieces[turn] is None:
      turn += 1
      yield f"\n\n{waiting[turn]}"
      waiting[turn] = ""
  yield "".join(f"\n\n{rest}" for rest in waiting[turn + 1 :]) + "\n"


class Clock:
  """Counts tokens, and the seconds after the first of them."""

  def __init__(self):
    self._made = time.monotonic()
    self._times: list[float] = []
    self._n_tokens = 0

  def count(
    self, steps: Iterable[Sequence[int | None]]
  ) -> Iterator[Sequence[int | None]]:
    """Passes the steps through."""
    for tokens in steps:
      self._times.append(time.monotonic())
      if len(self._times) > 1:
        self._n_tokens += len(tokens) - tokens.count(None)
      yield tokens

  def __str__(self) -> str:
    first, last = self._times[0], self._times[-1]
    rate = self._n_tokens / max(last - first, 1e-9)
    return (
      f"first token after {first - self._made:.2f} s (compiling included), "
      f"then {rate:.1f} tokens/s"
    )


if __name__ == "__main__":
  door.run(main, SECTIONS)
