"""HellaSwag: how a scene goes on, four endings.

arXiv 1905.07830; lm-evaluation-harness: hellaswag.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/hellaswag.py:rows=validation.parquet

Rows are those of Rowan/hellaswag: activity_label, ctx_a, ctx_b, endings, label.
asked=letters lists the endings under letters.
"""

import re

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  return common.choices(arg, "hellaswag.parquet", spare=True)


def item(row):
  """A scene, and four ways on."""
  scene = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
  return dict(
    prompt=_plain(f"{row['activity_label']}: {scene}"),
    options=tuple(map(_plain, row["endings"])),
    right=(int(row["label"]),),
  )


def _plain(text):
  """Without the brackets that WikiHow leaves."""
  text = text.strip().replace(" [title]", ". ")
  return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
