"""GSM8K: word problems of school arithmetic, solved in words.

arXiv 2110.14168; lm-evaluation-harness: gsm8k, and with item=cot gsm8k_cot
(chain of thought, 2201.11903, with the eight examples of that paper).

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/gsm8k.py:rows=test.jsonl,shots=train.jsonl,n=5

Rows are those of openai/gsm8k: question, answer; other examples for item=cot
come from `shots`, where `target` is the answer in words. n=-1 is as many as
lm-eval shows. Strict wants the number where the examples have it, flexible
takes the last one. samples=8,temperature=0.7 lets the majority decide
(self-consistency, 2203.11171).
"""

import re

from configs import common

# The eight of 2201.11903, appendix G, as lm-eval spells them.
EXAMPLES = (
  dict(
    question=(
      "There are 15 trees in the grove. Grove workers will plant trees in the"
      " grove today. After they are done, there will be 21 trees. How many "
      "trees did the grove workers plant today?"
    ),
    target=(
      "There are 15 trees originally. Then there were 21 trees after some "
      "more were planted. So there must have been 21 - 15 = 6. The answer is "
      "6."
    ),
  ),
  dict(
    question=(
      "If there are 3 cars in the parking lot and 2 more cars arrive, how "
      "many cars are in the parking lot?"
    ),
    target=(
      "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer"
      " is 5."
    ),
  ),
  dict(
    question=(
      "Leah had 32 chocolates and her sister had 42. If they ate 35, how many"
      " pieces do they have left in total?"
    ),
    target=(
      "Originally, Leah had 32 chocolates. Her sister had 42. So in total "
      "they had 32 + 42 = 74. After eating 35, they had 74 - 35 = 39. The "
      "answer is 39."
    ),
  ),
  dict(
    question=(
      "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12"
      " lollipops. How many lollipops did Jason give to Denny?"
    ),
    target=(
      "Jason started with 20 lollipops. Then he had 12 after giving some to "
      "Denny. So he gave Denny 20 - 12 = 8. The answer is 8."
    ),
  ),
  dict(
    question=(
      "Shawn has five toys. For Christmas, he got two toys each from his mom "
      "and dad. How many toys does he have now?"
    ),
    target=(
      "Shawn started with 5 toys. If he got 2 toys each from his mom and dad,"
      " then that is 4 more toys. 5 + 4 = 9. The answer is 9."
    ),
  ),
  dict(
    question=(
      "There were nine computers in the server room. Five more computers were"
      " installed each day, from monday to thursday. How many computers are "
      "now in the server room?"
    ),
    target=(
      "There were originally 9 computers. For each of 4 days, 5 more "
      "computers were added. So 5 * 4 = 20 computers were added. 9 + 20 is "
      "29. The answer is 29."
    ),
  ),
  dict(
    question=(
      "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On "
      "wednesday, he lost 2 more. How many golf balls did he have at the end "
      "of wednesday?"
    ),
    target=(
      "Michael started with 58 golf balls. After losing 23 on tuesday, he had"
      " 58 - 23 = 35. After losing 2 more, he had 35 - 2 = 33 golf balls. The"
      " answer is 33."
    ),
  ),
  dict(
    question=(
      "Olivia has $23. She bought five bagels for $3 each. How much money "
      "does she have left?"
    ),
    target=(
      "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 "
      "dollars. So she has 23 - 15 dollars left. 23 - 15 is 8. The answer is "
      "8."
    ),
  ),
)


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  arg = common.parse_arg(
    arg,
    rows="gsm8k.jsonl",
    shots="",
    n=-1,
    limit=0,
    item="item",
    samples=1,
    temperature=0.0,
  )
  is_cot = arg.item == "cot"
  n = arg.n if arg.n >= 0 else 8 if is_cot else 5
  own = is_cot and not arg.shots
  strict = "exact_match_strict_cot" if is_cot else "exact_match_strict"
  return common.task(
    kind="writing",
    rows=arg.rows,
    metrics=(strict, "exact_match_flexible"),
    item=arg.item,
    limit=arg.limit,
    shots=dict(
      n=n,
      rows="EXAMPLES" if own and n else arg.shots,
      draw="first" if is_cot else "random",
    ),
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
