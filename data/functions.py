"""Instructions out of code: what a function does, and the function.

    python -m data.functions --file=runs/functions.jsonl
    python -m data.functions --file=runs/functions.jsonl \
      --heldout=runs/functions_heldout.jsonl

Of the Python standard library as it lies on this machine: short functions with
a docstring, whose first paragraph and signature are the instruction, and whose
source without it is the output. A line of JSON each, as Alpaca has them.
--heldout is a second file, for one module in ten, with what it does not share
with the others: neither a function of the same name nor the same source.
"""

import ast
import json
from collections.abc import Collection, Iterator

from absl import app, flags
from etils import epath

from data import shards, sources

HELDOUT = 0.1  # of the modules
MAX_CHARS = 400  # of an instruction, and of an output

Row = dict[str, str]  # instruction, output

_FILE = flags.DEFINE_string("file", None, "the file to write", required=True)
_HELDOUT = flags.DEFINE_string("heldout", "", "the file of what is held out")


def main(argv: list[str]) -> None:
  """Writes the files."""
  del argv
  rows, apart = {}, {}
  for document in sources.documents("stdlib"):
    is_apart = bool(_HELDOUT.value) and shards.place(document.id) < HELDOUT
    for row in instructions(document.text):
      (apart if is_apart else rows)[row["instruction"]] = row
  _write(epath.Path(_FILE.value), list(rows.values()))
  if _HELDOUT.value:
    _write(epath.Path(_HELDOUT.value), unseen(apart.values(), rows.values()))


def unseen(rows: Collection[Row], others: Collection[Row]) -> list[Row]:
  """The rows that share neither the function's name nor its source."""
  names, outputs = {_name(row) for row in others}, {r["output"] for r in others}
  return [
    row
    for row in rows
    if _name(row) not in names and row["output"] not in outputs
  ]


def _name(row: Row) -> str:
  return row["instruction"].partition(":")[0]


def _write(out: epath.Path, rows: list[Row]) -> None:
  out.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
  out.write_text("".join(lines))
  print(f"{out}: {len(lines):,} instructions")


def instructions(source: str) -> Iterator[Row]:
  """The rows of one module."""
  try:
    tree = ast.parse(source)
  except (SyntaxError, ValueError):
    return
  for node in ast.walk(tree):
    if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
      continue
    said = (ast.get_docstring(node) or "").split("\n\n")[0]
    if not said or said.startswith(("Test", "Internal")):
      continue
    bare = ast.FunctionDef(
      **{**vars(node), "body": node.body[1:], "decorator_list": []}
    )
    row = {
      "instruction": f"Write {node.name}: {' '.join(said.split())}",
      "output": ast.unparse(bare),
    }
    if max(map(len, row.values())) <= MAX_CHARS:
      yield row


if __name__ == "__main__":
  app.run(main)
