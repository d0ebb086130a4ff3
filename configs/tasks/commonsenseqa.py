"""CommonsenseQA: five options under letters.

arXiv 1811.00937; lm-evaluation-harness: commonsense_qa.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/commonsenseqa.py:rows=validation.parquet

Rows are those of tau/commonsense_qa: question, choices.text, choices.label,
answerKey. asked=texts asks for the options themselves.
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  return common.choices(
    arg, "commonsenseqa.parquet", asked="letters", spare=True
  )


def item(row):
  """A question, and five options."""
  choices = row["choices"]
  question = f"Question: {row['question'].strip()}"
  return dict(
    prompt=f"{question}\nAnswer:",
    lead=question,
    options=tuple(choices["text"]),
    right=(choices["label"].index(row["answerKey"]),),
  )
