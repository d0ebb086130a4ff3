"""ARC: school science, three to five options; easy and challenge alike.

arXiv 1803.05457; lm-evaluation-harness: arc_easy, arc_challenge.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/arc.py:rows=test.parquet

Rows are those of allenai/ai2_arc: question, choices.text, choices.label,
answerKey. asked=letters lists the options under letters.
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  return common.choices(arg, "arc.parquet")


def item(row):
  """Labels are letters, in some rows digits."""
  choices = row["choices"]
  question = f"Question: {row['question']}"
  return dict(
    prompt=f"{question}\nAnswer:",
    lead=question,
    options=tuple(choices["text"]),
    right=(choices["label"].index(row["answerKey"]),),
  )
