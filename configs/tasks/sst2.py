"""SST-2: is a sentence of a film review for or against? By a model's own head.

Socher et al. 2013; GLUE: arXiv 1804.07461.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/sst2.py:rows=validation.parquet

Rows are those of GLUE's sst2: sentence, label (1: for). The model has the head
`texts` with two labels.
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  arg = common.parse_arg(arg, rows="sst2.parquet", limit=0)
  return common.task(
    kind="label",
    rows=arg.rows,
    metrics=("acc", "f1_macro", "mcc"),
    limit=arg.limit,
  )


def item(row):
  """A sentence."""
  return dict(
    prompt=row["sentence"],
    options=("against", "for"),
    right=(int(row["label"]),),
  )
