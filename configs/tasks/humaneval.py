"""HumanEval: a function is written below its docstring, and run.

arXiv 2107.03374; lm-evaluation-harness: humaneval.

    python -m train.evaluate --workdir=runs/quick --task=configs/tasks/humaneval.py:rows=humaneval.jsonl

Rows are those of openai/openai_humaneval: prompt, test, entry_point. What the
model wrote is run on this machine; train/evaluators/sandbox.py says within what
bounds, and what they do not stop. samples=20,temperature=0.2 gives pass@1 over
20 programs each.
"""

from configs import common


def get_task(arg: str = ""):
  """What is asked, of which rows."""
  arg = common.parse_arg(
    arg, rows="humaneval.jsonl", limit=0, samples=1, temperature=0.0
  )
  return common.task(
    kind="program",
    rows=arg.rows,
    metrics=("pass_at_1",),
    limit=arg.limit,
    writing=dict(
      stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
      max_tokens=1024,
      n_samples=arg.samples,
      temperature=arg.temperature,
    ),
  )


def item(row):
  """The tests come behind the function."""
  return dict(
    prompt=row["prompt"],
    check=f"{row['test']}\ncheck({row['entry_point']})",
  )
