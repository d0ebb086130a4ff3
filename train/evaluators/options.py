"""Multiple choice: the likeliest option is the answer.

`acc` compares the options' likelihoods, `acc_norm` those per byte of an option:
lm-evaluation-harness calls that acc_bytes, and divides by characters in its
acc_norm; for ASCII they are one. `mass` is the share of the probability that
the right options have among all (MC2 of TruthfulQA, arXiv 2109.07958).
"""

from typing import Any

import numpy as np

from train.evaluators import likelihood
from train.evaluators.likelihood import Run
from train.evaluators.subject import Subject
from train.evaluators.task import Item, Task

METRICS = ("acc", "acc_norm", "mass", "f1_macro", "f1_micro", "mcc")


def ask(subject: Subject, task: Task, run: Run) -> list[dict[str, Any]]:
  """One record for each item."""
  requests = [
    likelihood.continuation(subject, prompt, task.config.joint + option)
    for prompt, item in zip(task.prompts, task.items, strict=True)
    for option in item.options
  ]
  answers = likelihood.answer(subject, requests, run)
  records, start = [], 0
  for item in task.items:
    end = start + len(item.options)
    record = grade(item, [a.log_p for a in answers[start:end]])
    record["n_cut"] = sum(r.n_cut for r in requests[start:end])
    records.append(record)
    start = end
  return records


def grade(item: Item, log_p: list[float]) -> dict[str, Any]:
  """What the likelihoods of the options come to."""
  scores = np.array(log_p, np.float64)
  sizes = np.array([len(option.encode()) for option in item.options])
  said, said_norm = int(scores.argmax()), int((scores / sizes).argmax())
  share = np.exp(scores - scores.max())
  share /= share.sum()
  return {
    "log_p": log_p,
    "said": said,
    "right": list(item.right),
    "scores": {
      "acc": float(said in item.right),
      "acc_norm": float(said_norm in item.right),
      "mass": float(share[list(item.right)].sum()),
    },
  }
