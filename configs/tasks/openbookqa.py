"""OpenBookQA: elementary science, four options, without the book.

arXiv 1809.02789; lm-evaluation-harness: openbookqa.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/openbookqa.py:rows=test.jsonl

Rows are those of allenai/openbookqa: question_stem, choices.text,
choices.label, answerKey. asked=letters lists the options under letters.
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  return common.choices(arg, "openbookqa.jsonl")


def item(row):
  """The sentence is to be gone on with."""
  choices = row["choices"]
  return dict(
    prompt=row["question_stem"],
    options=tuple(choices["text"]),
    right=(choices["label"].index(row["answerKey"].lstrip()),),
  )
