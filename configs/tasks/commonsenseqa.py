"""CommonsenseQA: five options under letters.

arXiv 1811.00937; lm-evaluation-harness: commonsense_qa.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/commonsenseqa.py:rows=validation.parquet

Rows are those of tau/commonsense_qa: question, choices.text, choices.label,
answerKey. asked=texts asks for the options themselves.
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  arg = common.parse_arg(
    arg, rows="commonsenseqa.parquet", shots="", n=0, limit=0, asked="letters"
  )
  return common.task(
    kind="choice",
    rows=arg.rows,
    metrics=("acc",) if arg.asked == "letters" else ("acc", "acc_norm"),
    limit=arg.limit,
    shots=dict(n=arg.n, rows=arg.shots, spare=True),
    asked=arg.asked,
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
