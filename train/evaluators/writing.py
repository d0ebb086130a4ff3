"""Answers that are written: stop strings, readings, votes, references.

Chain of thought: arXiv 2201.11903, in the prompts of a page. Self-consistency:
2203.11171: of several drawn texts the answer that most of them come to counts,
the first met among equals; a text without an answer has no vote.
"""

import collections
from collections.abc import Sequence
from typing import Any

from jax import numpy as jnp

from models import decode, families, sampling
from train.evaluators import metrics, samples, sandbox, spoken
from train.evaluators import subject as subjects
from train.evaluators.likelihood import Run
from train.evaluators.subject import Subject
from train.evaluators.task import Item, Task, Writing

# Of a reading R of the page, also exact_match_R.
METRICS = ("exact_match", "bleu", "chrf", *metrics.ROUGE)
_LOOK_EVERY = 8  # tokens between two looks for stop strings


def ask(subject: Subject, task: Task, run: Run) -> list[dict[str, Any]]:
  """One record for each item."""
  how = task.config.writing
  prompts = [p for p in task.prompts for _ in range(how.n_samples)]
  if task.config.spoken:
    rows = spoken.prompts(subject, prompts)
  else:
    begun, sources = samples.encode(subject.model, subject.tokenizer, prompts)
    rows = sources or begun
  texts, cut = write(subject, rows, how, run)
  records = []
  for i, item in enumerate(task.items):
    own = slice(i * how.n_samples, (i + 1) * how.n_samples)
    record = grade(task, item, texts[own])
    prompt = task.prompts[i]
    records.append({"prompt": prompt, **record, "n_cut": sum(cut[own])})
  return records


def grade(task: Task, item: Item, texts: Sequence[str]) -> dict[str, Any]:
  """What the texts that were written for an item come to."""
  said = {
    name: vote([read(text) for text in texts])
    for name, read in task.readings.items()
  }
  scores = {
    f"exact_match_{name}": float(answer == item.reference)
    for name, answer in said.items()
  }
  scores["exact_match"] = float(texts[0].strip() == item.reference.strip())
  if {*metrics.ROUGE} & {*task.config.metrics}:
    scores |= metrics.rouge(item.reference, texts[0])
  if task.config.kind == "program":
    passed = [
      sandbox.passes(f"{item.prompt}{text}\n{item.check}\n") for text in texts
    ]
    # Unbiased where each of several is drawn alike: 2107.03374, k = 1.
    scores["pass_at_1"] = sum(passed) / len(passed)
  return {
    "texts": list(texts),
    "read": said,
    "reference": item.reference,
    "scores": scores,
  }


def vote(answers: Sequence[str | None]) -> str | None:
  """The answer that is given most often; the first of those that tie."""
  counted = collections.Counter(a for a in answers if a is not None)
  return counted.most_common(1)[0][0] if counted else None


def until(text: str, stop: Sequence[str]) -> str:
  """The text before the first of the stop strings."""
  ends = [at for at in (text.find(s) for s in stop) if at >= 0]
  return text[: min(ends, default=len(text))]


def write(
  subject: Subject, prompts: Sequence[list[int]], how: Writing, run: Run
) -> tuple[list[str], list[int]]:
  """Continues the ids of every prompt.

  A text is the same whatever is written beside it: its key is that of its place
  among the prompts. A prompt that is too long is cut on the left. A model of two
  texts reads the prompt, and writes the other.

  Returns:
    the texts, and how many tokens of each prompt were cut.

  Raises:
    ValueError: max_tokens leaves no room for a prompt.
  """
  room = subject.longest - how.max_tokens
  if room < 1:
    raise ValueError(
      f"writing.max_tokens={how.max_tokens} leaves no room for a prompt in the "
      f"model's {subject.longest} tokens (model.max_length): lower it."
    )
  tokenizer = subject.tokenizer
  is_read = families.reads(subject.model, "source")
  if is_read:  # what is written takes no room of what is read
    room = subject.longest
  cut = [max(0, len(row) - room) for row in prompts]
  rows = [row[n:] for row, n in zip(prompts, cut, strict=True)]
  config, params = decode.unrolled(subject.model, subject.params)
  keys = sampling.keys(how.seed, len(prompts))
  settings = sampling.Config(
    max_tokens=how.max_tokens, temperature=how.temperature
  )

  def one_batch(batch: tuple[int, list[int]]) -> list[str]:
    length, which = batch
    # Always as many rows, so that no second program is compiled.
    spare = subject.n_rows(length) - len(which)
    chosen = jnp.array([*which, *spare * which[-1:]])
    asked = [rows[i] for i in chosen.tolist()]
    begun = [[config.start_id]] * len(asked) if is_read else asked
    steps = decode.stream(
      config,
      params,
      begun,
      settings,
      tokenizer.end_ids,
      keys[chosen],
      asked if is_read else None,
    )
    return _texts(tokenizer, steps, how.stop, len(which))

  taken = 0 if is_read else how.max_tokens
  batches = subjects.by_length(subject, [len(row) + taken for row in rows])
  texts = [""] * len(prompts)
  for (_, which), found in zip(batches, run(batches, one_batch), strict=True):
    for i, text in zip(which, found, strict=True):
      texts[i] = text
  return texts, cut


def _texts(tokenizer, steps, stop: Sequence[str], n_rows: int) -> list[str]:
  """Reads steps until each of the first rows has ended or met a stop string."""
  ids: list[list[int]] = [[] for _ in range(n_rows)]
  open_rows = set(range(n_rows))

  def decoded(row: int) -> str:
    return tokenizer.decode([i for i in ids[row] if i not in tokenizer.end_ids])

  for n, tokens in enumerate(steps, start=1):
    for row in list(open_rows):
      if tokens[row] is None:
        open_rows.discard(row)
      else:
        ids[row].append(tokens[row])
    if stop and n % _LOOK_EVERY == 0:
      open_rows = {
        r for r in open_rows if until(decoded(r), stop) == decoded(r)
      }
    if not open_rows:
      break
  return [until(decoded(row), stop) for row in range(n_rows)]
