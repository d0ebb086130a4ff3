"""The likelihood of whole texts: per token, per byte, per word.

Every text is measured by itself. Bytes and words are those of the text, not of
its tokens: models of any tokenizer can be compared.
"""

from collections.abc import Sequence
from typing import Any

from train.evaluators import likelihood
from train.evaluators.likelihood import Run
from train.evaluators.subject import Subject
from train.evaluators.task import Task, Windows

METRICS = (
  "bits_per_byte",
  "byte_perplexity",
  "word_perplexity",
  "token_perplexity",
)


def ask(subject: Subject, task: Task, run: Run) -> list[dict[str, Any]]:
  """One record for each text.

  Raises:
    ValueError: windows that are longer than what the model reads.
  """
  log_p = likelihoods(subject, task.prompts, task.config.windows, run)
  return [
    {
      "log_p": one,
      "n_tokens": len(subject.tokenizer.encode(text)),
      "n_bytes": item.n_bytes or len(text.encode()),
      "n_words": item.n_words or len(text.split()),
      "n_cut": 0,
      "scores": {},
    }
    for item, text, one in zip(task.items, task.prompts, log_p, strict=True)
  ]


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
