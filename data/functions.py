"""Instructions out of code: what a function does, and the function.

    python -m data.functions --file=runs/functions.jsonl

Of the Python standard library as it lies on this machine: short functions with
a docstring, whose first paragraph and signature are the instruction, and whose
source without it is the output. A line of JSON each, as Alpaca has them.
"""

import ast
import json
from collections.abc import Iterator

from absl import app, flags
from etils import epath

from data import sources

MAX_CHARS = 400  # of an instruction, and of an output

_FILE = flags.DEFINE_string("file", None, "the file to write", required=True)


def main(argv: list[str]) -> None:
  """Writes the file."""
  del argv
  out = epath.Path(_FILE.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  rows = {
    row["instruction"]: row
    for document in sources.documents("stdlib")
    for row in instructions(document.text)
  }
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()]
  out.write_text("".join(lines))
  print(f"{out}: {len(lines):,} instructions")


def instructions(source: str) -> Iterator[dict[str, str]]:
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
