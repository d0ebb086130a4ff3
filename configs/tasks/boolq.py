"""BoolQ: a passage, and a question that it answers by yes or no.

arXiv 1905.10044; lm-evaluation-harness: boolq.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/boolq.py:rows=validation.parquet

Rows are those of super_glue's boolq: passage, question, label (1: yes).
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  arg = common.parse_arg(arg, rows="boolq.parquet", shots="", n=0, limit=0)
  return common.task(
    kind="choice",
    rows=arg.rows,
    metrics=("acc", "f1_macro", "mcc"),
    limit=arg.limit,
    shots=dict(n=arg.n, rows=arg.shots, spare=True),
  )


def item(row):
  """Below the passage."""
  return dict(
    prompt=f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:",
    options=("no", "yes"),
    right=(int(row["label"]),),
  )
