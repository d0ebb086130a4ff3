"""How likely a model finds a continuation of a text, or a whole text.

Context and continuation are tokenized together, and parted where the context
alone would end, as lm-evaluation-harness does: "Paris" behind "is " is not the
same tokens as " Paris" behind "is". Nothing of size [B, T, V] is ever held.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from models import families, prefix
from train.evaluators import subject as subjects
from train.evaluators.subject import Subject
from train.objectives import lm


class Request(NamedTuple):
  """Tokens, of which the last ones are asked for."""

  ids: tuple[int, ...]
  n_asked: int
  n_cut: int = 0  # tokens of the context that the model has no room for


class Answer(NamedTuple):
  """What a model says of a request."""

  log_p: float  # natural, summed over the tokens that are asked for
  greedy: bool  # whether each of them is the likeliest


# (batches, what answers one of them) -> the answers; see exam.Work.
Run = Callable[[Sequence[Any], Callable[[Any], list]], list[list]]


def at_once(
  batches: Sequence[Any], answer: Callable[[Any], list]
) -> list[list]:
  """Answers all batches, and writes nothing down."""
  return [answer(batch) for batch in batches]


def continuation(subject: Subject, context: str, text: str) -> Request:
  """The request for a text behind a context.

  A context without text is the tokenizer's BOS. White space at the end of the
  context goes to the continuation. What is too long is cut on the left.

  Raises:
    ValueError: nothing is asked for, or more than the model reads at once.
  """
  tokenizer = subject.tokenizer
  bare = context.rstrip()
  if bare:
    text = context[len(bare) :] + text
    start = list(tokenizer.start)
    before = [*start, *tokenizer.encode(bare)]
    ids = [*start, *tokenizer.encode(bare + text)]
  else:
    before = [tokenizer.bos_id]
    ids = [tokenizer.bos_id, *tokenizer.encode(context + text)]
  return fitted(subject, ids, len(ids) - len(before), text)


def fitted(
  subject: Subject, ids: Sequence[int], n_asked: int, text: str
) -> Request:
  """The request for the last ids, cut on the left where all are too long.

  Args:
    subject: who is asked.
    ids: of all that is read.
    n_asked: of them, at the end.
    text: that they stand for, to be told.

  Raises:
    ValueError: nothing is asked for, or more than the model reads at once.
  """
  if not 0 < n_asked <= subject.longest:
    raise ValueError(
      f"{text[:60]!r} is {n_asked} tokens behind its context, and 1 to "
      f"{subject.longest} can be asked for (model.max_length)."
    )
  n_cut = max(0, len(ids) - subject.longest - 1)
  return Request(tuple(ids[n_cut:]), n_asked, n_cut)


def windows(
  ids: Sequence[int], bos_id: int, length: int, stride: int
) -> Iterator[Request]:
  """Cuts a text so that each token is asked for once.

  The first window begins with BOS and is full; each further one asks for
  `stride` tokens behind as many as there is room for (the last one, for what
  is left). stride = length is lm-eval's rolling likelihood.

  Args:
    ids: of the text, without BOS.
    bos_id: what its first token stands behind.
    length: tokens that the model reads at once.
    stride: tokens that a window moves on, 1 to length.

  Raises:
    ValueError: another stride.
  """
  if not 1 <= stride <= length:
    raise ValueError(f"stride={stride}: expected 1 to {length}, the window.")
  whole = [bos_id, *ids]
  end = min(length, len(ids))
  if ids:
    yield Request(tuple(whole[: end + 1]), end)
  while end < len(ids):
    n_asked = min(stride, len(ids) - end)
    end += n_asked
    yield Request(tuple(whole[end - length : end + 1]), n_asked)


def answer(
  subject: Subject, requests: Sequence[Request], run: Run = at_once
) -> list[Answer]:
  """Answers all requests, in their order.

  Args:
    subject: who is asked.
    requests: any number, of any lengths.
    run: goes through the batches.
  """
  score = scorer(subject.model)

  def one_batch(batch: tuple[int, list[int]]) -> list:
    length, which = batch
    asked = [requests[i] for i in which]
    rows = _padded(asked, subject.n_rows(length), length)
    with subject.layout.use():
      sums = score(subject.params, *map(subject.put, rows))
    loss, hits = (np.asarray(x)[: len(asked)] for x in jax.device_get(sums))
    return [
      [-float(nll), int(n) == request.n_asked]
      for nll, n, request in zip(loss, hits, asked, strict=True)
    ]

  batches = subjects.by_length(subject, [len(r.ids) - 1 for r in requests])
  found: list[Answer | None] = [None] * len(requests)
  for (_, which), answers in zip(batches, run(batches, one_batch), strict=True):
    for i, one in zip(which, answers, strict=True):
      found[i] = Answer(*one)
  return found


@functools.cache
def scorer(model: families.Config) -> Callable[..., Any]:
  """Builds (params, tokens, targets, weights, segments, positions) -> sums.

  The sums are [B]: the loss of a row, and how many of its targets are likeliest.
  """
  how = families.scoring(model)

  @jax.jit
  def score(params, tokens, targets, weights, segments, positions):
    hidden, _ = prefix.apply(model, params, tokens, positions, segments)
    head = families.whole_head(model, params)
    sums = lm.row_sums(lm.Config(), how, hidden, head, targets, weights)
    return sums["loss"], sums["accuracy"]

  return score


def _padded(
  requests: Sequence[Request], n_rows: int, length: int
) -> tuple[np.ndarray, ...]:
  """Tokens, targets, weights, segments and positions, all [B, T]."""
  shape = (n_rows, length)
  tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
  weights = np.zeros(shape, np.float32)
  for row, request in enumerate(requests):
    n = len(request.ids) - 1
    tokens[row, :n], targets[row, :n] = request.ids[:-1], request.ids[1:]
    weights[row, n - request.n_asked : n] = 1
    segments[row, :n] = 1
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
  return tokens, targets, weights, segments, positions
