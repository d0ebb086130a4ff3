"""Classification by a model's own head: the label with the highest score."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from models import families
from train.evaluators import subject as subjects
from train.evaluators.likelihood import Run
from train.evaluators.subject import Subject
from train.evaluators.task import Task

METRICS = ("acc", "f1_macro", "f1_micro", "mcc")


def ask(subject: Subject, task: Task, run: Run) -> list[dict[str, Any]]:
  """One record for each text.

  Raises:
    ValueError: the model has another number of labels, or no such head.
  """
  n_options = {len(item.options) for item in task.items}
  model = subject.model
  n_labels = model.heads.n_labels if "texts" in families.kinds(model) else 0
  if n_options != {n_labels}:
    raise ValueError(
      f"{task.name} has {sorted(n_options)} labels, and the model {n_labels} "
      "(model.heads.n_labels): ask one that was trained for it."
    )
  rows = [_ids(subject, text) for text in task.prompts]
  cut = [row[: subject.longest] for row in rows]
  score = scorer(subject.model)

  def one_batch(batch: tuple[int, list[int]]) -> list:
    length, which = batch
    shape = (subject.n_rows(length), length)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, i in enumerate(which):
      tokens[row, : len(cut[i])] = cut[i]
      segments[row, : len(cut[i])] = 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    with subject.layout.use():
      found = score(
        subject.params, *map(subject.put, (tokens, positions, segments))
      )
    return np.asarray(found)[: len(which)].tolist()

  batches = subjects.by_length(subject, [len(row) for row in cut])
  scores: dict[int, list[float]] = {}
  for (_, which), found in zip(batches, run(batches, one_batch), strict=True):
    scores.update(zip(which, found, strict=True))
  records = []
  for i, item in enumerate(task.items):
    said = int(np.argmax(scores[i]))
    records.append(
      {
        "logits": scores[i],
        "said": said,
        "right": list(item.right),
        "n_cut": len(rows[i]) - len(cut[i]),
        "scores": {"acc": float(said in item.right)},
      }
    )
  return records


def _ids(subject: Subject, text: str) -> list[int]:
  """A text as it was read in training: with its end."""
  return [*subject.tokenizer.prompt(text), subject.tokenizer.eos_id]


@functools.cache
def scorer(model: families.Config) -> Callable[..., Any]:
  """Builds (params, tokens, positions, segments) -> scores of the labels."""
  module = families.build(model)

  @jax.jit
  def score(params, tokens, positions, segments):
    hidden, _ = module.apply({"params": params}, tokens, positions, segments)
    said = families.of_texts(model, params, hidden, positions, segments)
    return said[:, 0]  # a text's answer stands at its first token

  return score
