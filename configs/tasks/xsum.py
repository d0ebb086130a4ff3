"""XSum: one sentence says what an article is about.

arXiv 1808.08745; lm-evaluation-harness has no such task of its own.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/xsum.py:rows=test.jsonl,limit=100

Rows are those of EdinburghNLP/xsum: document, summary. ROUGE is rouge-score's
with stemming, chrF sacrebleu's (pip install -e '.[eval]'). `item=plain` gives
the article alone, as a model of two texts reads it that was finetuned on pairs.
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  arg = common.parse_arg(
    arg, rows="xsum.jsonl", shots="", n=0, limit=0, item="item"
  )
  return common.task(
    kind="writing",
    rows=arg.rows,
    item=arg.item,
    metrics=("rouge1", "rouge2", "rougeL", "chrf"),
    limit=arg.limit,
    shots=dict(n=arg.n, rows=arg.shots),
    writing=dict(stop=("\n",), max_tokens=64),
  )


def item(row):
  """An article, and then its sentence."""
  return dict(
    prompt=f"Article: {row['document']}\n\nSummary in one sentence:",
    target=row["summary"],
    reference=row["summary"],
  )


def plain(row):
  """The article as it is."""
  return dict(
    prompt=row["document"], target=row["summary"], reference=row["summary"]
  )
