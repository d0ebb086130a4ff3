"""GSM8K: word problems of school arithmetic, solved in words.

arXiv 2110.14168; lm-evaluation-harness: gsm8k, and with item=cot gsm8k_cot
(chain of thought, 2201.11903, whose eight examples are the rows of `shots`).

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/gsm8k.py:rows=test.jsonl,shots=train.jsonl,n=5

Rows are those of openai/gsm8k: question, answer; examples of item=cot may have
`target`, the answer in words, instead. Strict wants the number where the
examples have it, flexible takes the last one. samples=8,temperature=0.7 lets
the majority decide (self-consistency, 2203.11171).
"""

import re

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  arg = common.parse_arg(
    arg,
    rows="gsm8k.jsonl",
    shots="",
    n=5,
    limit=0,
    item="item",
    samples=1,
    temperature=0.0,
  )
  is_cot = arg.item == "cot"
  strict = "exact_match_strict_cot" if is_cot else "exact_match_strict"
  return common.task(
    kind="writing",
    rows=arg.rows,
    metrics=(strict, "exact_match_flexible"),
    item=arg.item,
    limit=arg.limit,
    shots=dict(n=arg.n, rows=arg.shots, draw="first" if is_cot else "random"),
    writing=dict(
      stop=("Q:" if is_cot else "Question:", "</s>", "<|im_end|>"),
      n_samples=arg.samples,
      temperature=arg.temperature,
    ),
  )


def item(row):
  """The answer ends with "#### " and the number."""
  return dict(
    prompt=f"Question: {row['question']}\nAnswer:",
    target=row["answer"],
    reference=_number(row["answer"]),
  )


def cot(row):
  """The answer ends with "The answer is " and the number."""
  target = row.get("target") or row["answer"].split("####")[-1].strip()
  return dict(
    prompt=f"Q: {row['question']}\nA:",
    target=target,
    reference=_number(target),
  )


def _number(text):
  text = re.sub(r"(?s).*#### ", "", re.sub(r"[,$]", "", text))
  return re.sub(r"\.$", "", text).lower()


def _found(pattern, text, which):
  found = re.findall(pattern, text)
  if not found:
    return None
  groups = found[which] if isinstance(found[which], tuple) else (found[which],)
  return _number(next(filter(None, groups)).strip())


READINGS = {
  "strict": lambda text: _found(r"#### (\-?[0-9\.\,]+)", text, 0),
  "strict_cot": lambda text: _found(r"The answer is (\-?[0-9\.\,]+).", text, 0),
  "flexible": lambda text: _found(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text, -1),
}
