"""A task from beginning to end: asked, graded, written down.

OUT/TITLE.json has the figures, OUT/TITLE.items.jsonl a record for each item.
While a task goes on, every answered batch is in a journal beside them: killed at
any moment and started again, it goes on behind the last one and ends at the
same bytes.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from configs import fields
from data import journal
from models import durable, manifest
from train.evaluators import (
  labels,
  likelihood,
  metrics,
  options,
  texts,
  writing,
)
from train.evaluators.subject import Subject
from train.evaluators.task import Task

# What asks, and the figures that there are of its records.
_KINDS = {
  "choice": (options.ask, options.METRICS),
  "text": (texts.ask, texts.METRICS),
  "writing": (writing.ask, writing.METRICS),
  "program": (writing.ask, (*writing.METRICS, "pass_at_1")),
  "label": (labels.ask, labels.METRICS),
}
Result = dict[str, Any]


class Work:
  """Goes through batches, and past those that a journal has answers of."""

  def __init__(self, kept: journal.Journal):
    self._kept = kept
    self._old = list(kept.entries)

  def __call__(
    self, batches: Sequence[Any], answer: Callable[[Any], list]
  ) -> list[list]:
    """The answers to all batches, in their order."""
    found = []
    for batch in batches:
      if self._old:
        found.append(self._old.pop(0)["answers"])
        continue
      answers = answer(batch)
      self._kept.append({"answers": answers})
      found.append(answers)
    return found


def check(task: Task) -> None:
  """Refuses figures that could not be told once all is answered.

  Raises:
    ValueError: see `metrics.check`.
  """
  _, known = _KINDS[task.config.kind]
  read = [f"exact_match_{name}" for name in task.readings]
  metrics.check(task.config.metrics, [*known, *read])


def ask(
  subject: Subject, task: Task, run: likelihood.Run = likelihood.at_once
) -> tuple[Result, list[metrics.Record]]:
  """The figures of a task, and a record for each item.

  Raises:
    ValueError: see `check`.
  """
  check(task)
  kind_ask, _ = _KINDS[task.config.kind]
  records = kind_ask(subject, task, run)
  found = metrics.figures(task.config.metrics, records)
  result = {
    "task": task.title,
    "n_items": len(records),
    "n_cut_tokens": sum(r["n_cut"] for r in records),
    "metrics": {name: _plain(figure) for name, figure in found.items()},
    "settings": fields.plain(task.config),
    "task_digest": task.digest,
  }
  return result, records


def sit(
  subject: Subject, task: Task, out: epath.Path, checkpoint: epath.Path
) -> Result:
  """Asks a task, or goes on with it, or gives what it came to before.

  Args:
    subject: who is asked.
    task: what.
    out: folder of the results; made where it is not there.
    checkpoint: where the subject was loaded from.
  """
  out.mkdir(parents=True, exist_ok=True)
  path = out / f"{task.title}.json"
  made_from = _made_from(subject, task, checkpoint)
  if path.exists():
    before = json.loads(path.read_text())
    if before["made_from"] == made_from:
      return before
  with journal.held(out / task.title) as kept:
    kept.begin(made_from, lambda entry, _: "answers" in entry)
    result, records = ask(subject, task, Work(kept))
    result["made_from"] = made_from
    lines = [
      json.dumps({"item": i, **record}) for i, record in enumerate(records)
    ]
    durable.write_text(items_path(path), "\n".join(lines) + "\n")
    durable.write_text(path, json.dumps(result, indent=1))
    kept.sweep()
  return result


def _plain(figure: metrics.Figure) -> dict[str, Any]:
  """JSON has no NaN."""
  spread = None if math.isnan(figure.stderr) else figure.stderr
  return {**figure._asdict(), "stderr": spread}


def items_path(path: epath.Path) -> epath.Path:
  """Where the records of a result are."""
  return path.with_suffix(".items.jsonl")


def read(out: epath.Path) -> dict[str, tuple[Result, list[metrics.Record]]]:
  """All results in a folder, with their records, by title.

  Raises:
    ValueError: there are none.
  """
  found = {}
  for path in sorted(out.glob("*.json")):
    items = items_path(path)
    if items.exists():
      lines = items.read_text().splitlines()
      records = [json.loads(line) for line in lines]
      found[path.stem] = json.loads(path.read_text()), records
  if not found:
    raise ValueError(
      f"{out} holds no results: measure a task first, python -m train.evaluate "
      "--task=configs/tasks/TASK.py --results=..."
    )
  return found


def _made_from(
  subject: Subject, task: Task, checkpoint: epath.Path
) -> Mapping[str, Any]:
  """What the answers depend on, and how they lie in batches."""
  text = (checkpoint / manifest.NAME).read_bytes()
  return {
    "task": task.digest,
    "checkpoint": hashlib.sha256(text).hexdigest(),
    "batch_tokens": subject.batch_tokens,
    "mesh": {k: int(n) for k, n in subject.layout.mesh.shape.items()},
  }
