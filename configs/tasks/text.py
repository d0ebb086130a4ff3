"""Texts, whole: bits per byte, perplexity per byte, word and token.

lm-evaluation-harness: output_type loglikelihood_rolling, as in wikitext.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/text.py:rows=texts.jsonl

Rows have `text`. length=1024,stride=512 reads windows that overlap, so that
every token but the first ones stands behind half a window at least.
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  arg = common.parse_arg(arg, rows="texts.jsonl", limit=0, length=0, stride=0)
  return common.task(
    kind="text",
    rows=arg.rows,
    metrics=(
      "bits_per_byte",
      "byte_perplexity",
      "word_perplexity",
      "token_perplexity",
    ),
    limit=arg.limit,
    windows=dict(length=arg.length, stride=arg.stride),
  )


def item(row):
  """A text by itself."""
  return dict(prompt=row["text"])
