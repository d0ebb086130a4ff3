"""PIQA: which of two ways leads to the goal.

arXiv 1911.11641; lm-evaluation-harness: piqa.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/piqa.py:rows=valid.jsonl

Rows are those of baber/piqa: goal, sol1, sol2, label. asked=letters lists the
options under letters.
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  return common.choices(arg, "piqa.jsonl", spare=True)


def item(row):
  """A goal, and two ways."""
  question = f"Question: {row['goal']}"
  return dict(
    prompt=f"{question}\nAnswer:",
    lead=question,
    options=(row["sol1"], row["sol2"]),
    right=(int(row["label"]),),
  )
