"""Shows packed rows in the terminal, as the model will see them.

    python -m data.show --config=configs/quickstart.py --workdir=runs/quick

Of conversations, what is coloured asks for a token that the assistant says.
A hue is a document, its two shades part one token from the next. Tokens whose
target has no weight are grey. Whitespace is visible: a middle dot is a space,
an arrow a tab, a return sign a newline. The margin says segment:position.
"""

import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags
from etils import epath

from configs import door
from data import corrupt, pipeline, prepare
from data.batch import Batch
from data.chat import spelling
from data.tokenizer import Config as TokenizerConfig
from data.tokenizer import Tokenizer

SECTIONS = {
  "data": prepare.Config,
  "tokenizer": TokenizerConfig,
  "batch": pipeline.Config,
}
# Two shades of 256-colour backgrounds for each hue.
HUES = ((24, 31), (22, 28), (54, 90), (94, 130), (23, 30), (52, 88))
GREY = (238, 240)
VISIBLE = {" ": "\u00b7", "\t": "\u2192", "\n": "\u23ce", "\r": "\u240d"}
MARGIN = 10
N_MEASURED = 16  # batches over which the packing is measured

_ROWS = flags.DEFINE_integer("rows", 4, "rows to show", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of the shuffle", lower_bound=0)
_COLOR = flags.DEFINE_bool(
  "color", True, "--nocolor marks tokens in plain text"
)


class Cell(NamedTuple):
  """One visible character and the place of the token that it belongs to."""

  text: str
  index: int  # of the token in its row
  is_line_end: bool = False
  is_border: bool = False  # between two tokens, of plain text only


def main(config: door.Config, workdir: epath.Path) -> None:
  """Prepares the store if there is none, then prints rows of the first batch."""
  store = prepare.prepare(
    config.data, config.tokenizer, prepare.folder(config.data, workdir)
  )
  batches = pipeline.train_batches(
    config.batch,
    store.train,
    config.data.weights,
    range(min(config.batch.size, max(_ROWS.value, 64))),
    _SEED.value,
    config.batch.noise_of(store.tokenizer),
  )
  measured = [next(batches) for _ in range(N_MEASURED)]
  print(summary(config.batch, measured))
  n_cut, n_examples = pipeline.n_cut(store.train, config.batch)
  if n_examples:
    print(
      f"{n_cut} of {n_examples} examples are longer than a row and lose their"
      " ends"
    )
  colored = _COLOR.value and sys.stdout.isatty()
  width = shutil.get_terminal_size().columns
  for row in range(min(_ROWS.value, len(measured[0].tokens))):
    print(f"\nrow {row}")
    if measured[0].source is not None:
      read = sources(measured[0])
      for line in lines(read, row, store.tokenizer, width, colored):
        print(line)
      print("  is read, and written is")
    for line in lines(measured[0], row, store.tokenizer, width, colored):
      print(line)


def sources(batch: Batch) -> Batch:
  """What an encoder reads of a batch, as rows of which nothing is asked."""
  s = batch.source
  nothing, counted = np.zeros_like(s.tokens), np.ones(s.tokens.shape)
  return Batch(
    s.tokens, nothing, np.float32(counted), s.segment_ids, s.positions
  )


def summary(config: pipeline.Config, batches: Sequence[Batch]) -> str:
  """One line on how full the rows are and how much of them counts."""
  n_places = sum(batch.tokens.size for batch in batches)
  n_used = sum(int((batch.segment_ids > 0).sum()) for batch in batches)
  n_weighted = sum(int((batch.weights > 0).sum()) for batch in batches)
  n_segments = sum(int(b.segment_ids.max(1).sum()) for b in batches)
  n_rows = sum(len(batch.tokens) for batch in batches)
  return (
    f"{config.size} rows of {config.length}, {len(batches)} batches:"
    f" {100 * n_used / n_places:.1f} % of the places used,"
    f" {100 * n_weighted / n_places:.1f} % with a loss,"
    f" {n_segments / n_rows:.2f} segments a row"
  )


def lines(
  batch: Batch, row: int, tokenizer: Tokenizer, width: int, colored: bool
) -> Iterator[str]:
  """Lays one row out in lines of `width` columns, with its margin."""
  line: list[Cell] = []
  for cell in _cells(batch, row, tokenizer, colored):
    if len(line) == max(width - MARGIN - 1, 20):
      yield _print_line(batch, row, line, colored)
      line = []
    if cell.is_border and not line:
      continue
    line.append(cell)
    if cell.is_line_end:
      yield _print_line(batch, row, line, colored)
      line = []
  if line:
    yield _print_line(batch, row, line, colored)


def _cells(
  batch: Batch, row: int, tokenizer: Tokenizer, colored: bool
) -> Iterator[Cell]:
  """Takes a row apart; in plain text a bar parts tokens, ~ unweighted ones."""
  names = {i: name for name, i in spelling.make(tokenizer).controls.items()}
  for i in range(batch.tokens.shape[1]):
    if not batch.segment_ids[row, i]:
      return
    if not colored:
      yield Cell("|" if batch.weights[row, i] else "~", i, is_border=True)
    token, target = int(batch.tokens[row, i]), int(batch.targets[row, i])
    # An EOS within a segment was shown as the target of what is before it.
    is_shown = token != tokenizer.eos_id or not batch.positions[row, i]
    text = names.get(token) if is_shown else ""
    for char in corrupt.decode(tokenizer, [token]) if text is None else text:
      yield Cell(_visible(char), i, char == "\n")
    if target == tokenizer.eos_id:
      for char in "</s>":
        yield Cell(char, i)


def _visible(char: str) -> str:
  if char in VISIBLE:
    return VISIBLE[char]
  # Control characters would steer the terminal; wide ones break the margin.
  if unicodedata.category(char)[0] in "CZM":
    return "\u2423" if unicodedata.category(char)[0] == "Z" else "\ufffd"
  return char


def _print_line(batch: Batch, row: int, line: list[Cell], colored: bool) -> str:
  first = line[0].index
  place = f"{batch.segment_ids[row, first]}:{batch.positions[row, first]}"
  margin = f"{place:>{MARGIN - 1}} "
  if not colored:
    return margin + "".join(cell.text for cell in line)
  out, style = [f"\033[2m{margin}\033[0m"], None
  for cell in line:
    hue = HUES[int(batch.segment_ids[row, cell.index] - 1) % len(HUES)]
    hue = hue if batch.weights[row, cell.index] else GREY
    wanted = f"\033[38;5;255;48;5;{hue[cell.index % 2]}m"
    if wanted != style:
      out.append(wanted)
      style = wanted
    out.append(cell.text)
  return "".join(out) + "\033[0m"


if __name__ == "__main__":
  door.run(main, SECTIONS)
