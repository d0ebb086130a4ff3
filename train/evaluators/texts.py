"""The likelihood of whole texts, or of answers: per token, per byte, per word.

Every text is measured by itself, an answer (`target`) behind its prompt. Bytes and
words are those of the text, not of its tokens: models of any tokenizer can be
compared.
"""

from collections.abc import Sequence
from typing import Any

from train.evaluators import likelihood, spoken
from train.evaluators.likelihood import Run
from train.evaluators.subject import Subject
from train.evaluators.task import Task, Windows

METRICS = (
  "loss",
  "bits_per_byte",
  "byte_perplexity",
  "word_perplexity",
  "token_perplexity",
)


def ask(subject: Subject, task: Task, run: Run) -> list[dict[str, Any]]:
  """One record for each text.

  Raises:
    ValueError: windows that are longer than what the model reads, or windows
      of answers; some texts are answers, and others whole.
  """
  answers = [item.target for item in task.items]
  if not any(answers) and not task.config.spoken:
    log_p = likelihoods(subject, task.prompts, task.config.windows, run)
    return [
      _record(item, text, one, len(subject.tokenizer.encode(text)), 0)
      for item, text, one in zip(task.items, task.prompts, log_p, strict=True)
    ]
  if task.config.windows != Windows():
    raise ValueError(
      f"{task.config.windows} cuts whole texts, and {task.title} measures "
      "answers, each read at once: leave it out."
    )
  if not all(answers):
    raise ValueError(
      f"item {answers.index('')} of {task.title} has no target to measure: give "
      "each one, or none and spoken=False."
    )
  pairs = list(zip(task.prompts, answers, strict=True))
  if task.config.spoken:
    requests = spoken.requests(subject, pairs)
  else:
    joint = task.config.joint
    requests = [
      likelihood.continuation(subject, prompt, joint + answer)
      for prompt, answer in pairs
    ]
  found = likelihood.answer(subject, requests, run)
  return [
    _record(item, item.target, one.log_p, request.n_asked, request.n_cut)
    for item, request, one in zip(task.items, requests, found, strict=True)
  ]


def _record(item, text, log_p, n_tokens, n_cut) -> dict[str, Any]:
  return {
    "log_p": log_p,
    "n_tokens": n_tokens,
    "n_bytes": item.n_bytes or len(text.encode()),
    "n_words": item.n_words or len(text.split()),
    "n_cut": n_cut,
    "scores": {},
  }


def likelihoods(
  subject: Subject,
  found: Sequence[str],
  how: Windows | None = None,
  run: Run = likelihood.at_once,
) -> list[float]:
  """How likely each text is, every token once, behind one BOS.

  Raises:
    ValueError: as `ask`.
  """
  how = how or Windows()
  length = how.length or subject.longest
  if length > subject.longest:
    raise ValueError(
      f"windows.length={length}, and the model reads {subject.longest} tokens "
      "at once (model.max_length): lower it."
    )
  tokenizer, stride = subject.tokenizer, how.stride or length
  cuts = [
    list(
      likelihood.windows(
        tokenizer.encode(text), tokenizer.bos_id, length, stride
      )
    )
    for text in found
  ]
  requests = [request for cut in cuts for request in cut]
  answers = iter(likelihood.answer(subject, requests, run))
  return [sum(next(answers).log_p for _ in cut) for cut in cuts]
