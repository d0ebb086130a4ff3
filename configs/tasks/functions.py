"""Functions: from what one does to its source, and to nothing but its source.

    python -m data.functions --file=runs/functions.jsonl --heldout=runs/functions_heldout.jsonl
    python -m train.evaluate --workdir=runs/smollm2 --results=runs/figures --task=configs/tasks/functions.py:rows=runs/functions_heldout.jsonl,limit=24

Rows have instruction and output. A user asks, in the checkpoint's own chat
template; lm-evaluation-harness has no such task. Bare counts answers that are
Python from the first letter to the last, and define the function that was asked
for and nothing else; fenced also takes them out of the first Markdown fence.
item=known measures how likely the real source is instead.
"""

import ast
import re

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  arg = common.parse_arg(
    arg, rows="functions_heldout.jsonl", limit=0, item="item", tokens=96
  )
  if arg.item == "known":
    return common.task(
      kind="text",
      rows=arg.rows,
      metrics=("loss", "bits_per_byte"),
      item=arg.item,
      limit=arg.limit,
      spoken=True,
    )
  return common.task(
    kind="writing",
    rows=arg.rows,
    metrics=("exact_match_bare", "exact_match_fenced"),
    item=arg.item,
    limit=arg.limit,
    spoken=True,
    writing=dict(max_tokens=arg.tokens),
  )


def item(row):
  """The name of the function is what an answer is compared by."""
  return dict(prompt=row["instruction"], reference=_defined(row["output"]))


def known(row):
  """The source is measured."""
  return dict(prompt=row["instruction"], target=row["output"])


def _defined(text):
  """The name of the one function that a text is the source of."""
  try:
    found = ast.parse(text).body
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None
  is_one = len(found) == 1 and isinstance(found[0], ast.FunctionDef)
  return found[0].name if is_one else None


def _fenced(text):
  found = re.search(r"```(?:python)?\n(.*?)(?:```|\Z)", text, re.DOTALL)
  return _defined(found[1] if found else text)


READINGS = {"bare": _defined, "fenced": _fenced}
