"""The likelihood of whole texts: per token, per byte, per word.

Every text is measured by itself. Bytes and words are those of the text, not of
its tokens: models of any tokenizer can be compared.
"""

from typing import Any

from train.evaluators import likelihood
from train.evaluators.likelihood import Run
from train.evaluators.subject import Subject
from train.evaluators.task import Task

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
  how = task.config.windows
  length = how.length or subject.longest
  if length > subject.longest:
    raise ValueError(
      f"windows.length={length}, and the model reads {subject.longest} tokens "
      "at once (model.max_length): lower it."
    )
  tokenizer = subject.tokenizer
  cuts, n_tokens = [], []
  for text in task.prompts:
    ids = tokenizer.encode(text)
    stride = how.stride or length
    n_tokens.append(len(ids))
    cuts.append(list(likelihood.windows(ids, tokenizer.bos_id, length, stride)))
  requests = [request for cut in cuts for request in cut]
  answers = iter(likelihood.answer(subject, requests, run))
  records = []
  for item, text, cut, n in zip(
    task.items, task.prompts, cuts, n_tokens, strict=True
  ):
    records.append(
      {
        "log_p": sum(next(answers).log_p for _ in cut),
        "n_tokens": n,
        "n_bytes": item.n_bytes or len(text.encode()),
        "n_words": item.n_words or len(text.split()),
        "n_cut": 0,
        "scores": {},
      }
    )
  return records
