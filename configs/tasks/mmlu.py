"""MMLU: exams in 57 subjects, four options under letters; one subject at once.

arXiv 2009.03300; lm-evaluation-harness: mmlu_SUBJECT.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/mmlu.py:rows=test.parquet,shots=dev.parquet,n=5,subject=anatomy

Rows are those of cais/mmlu: question, choices, answer. The examples are the
first of `shots`. asked=texts asks for the options themselves.
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  arg = common.parse_arg(
    arg,
    rows="mmlu.parquet",
    shots="",
    n=0,
    limit=0,
    subject="",
    asked="letters",
  )
  about = f" about {arg.subject.replace('_', ' ')}" if arg.subject else ""
  return common.task(
    kind="choice",
    rows=arg.rows,
    metrics=("acc",) if arg.asked == "letters" else ("acc", "acc_norm"),
    limit=arg.limit,
    shots=dict(n=arg.n, rows=arg.shots, draw="first"),
    description="The following are multiple choice questions (with answers)"
    f"{about}.\n\n",
    asked=arg.asked,
  )


def item(row):
  """A question, and four options."""
  question = row["question"].strip()
  return dict(
    prompt=f"{question}\nAnswer:",
    lead=question,
    options=tuple(row["choices"]),
    right=(int(row["answer"]),),
  )
