"""Which evaluators run, and on what: the section `eval`."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from configs import fields
from configs.ranges import Count
from models import sampling
from train.core import step as steps
from train.core.loop import Evaluator
from train.core.setup import Setup
from train.core.track import Tracker
from train.evaluators import (
  compression,
  counting,
  objective,
  perplexity,
  samples,
  syntax,
)

REPORTED: dict[str, tuple[str, ...]] = {  # evaluator -> its metrics
  "perplexity": (
    "heldout_loss",
    "perplexity",
    "bits_per_byte",
    "heldout_accuracy",
  ),
  "objective": ("heldout_loss", "heldout_accuracy"),
  "samples": (),
  "compression": (
    "gzip_bits_per_byte",
    "bz2_bits_per_byte",
    "xz_bits_per_byte",
  ),
  "ngram": ("ngram_bits_per_byte",),
  "python": ("python_share",),
}
Name = Literal[*REPORTED]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is looked at while a run goes on, and at its end."""

  during: tuple[Name, ...] = ("perplexity", "samples")  # each evaluation
  final: tuple[Name, ...] = ("perplexity", "samples")  # train.evaluate
  prompts: tuple[str, ...] = ("",)  # that samples continue
  n_python: Count = 20  # samples that `python` draws
  n_gram: Count = 5  # tokens, of the longest that `ngram` counts
  batch_tokens: Count = 4096  # of a batch of a task's requests, with padding

  def __post_init__(self):
    fields.check(self)
    if "samples" in self.during + self.final and not self.prompts:
      raise ValueError("prompts=() leaves samples nothing to continue.")

  @property
  def reported(self) -> tuple[str, ...]:
    """The metrics that are known while a run goes on."""
    return sum((REPORTED[name] for name in self.during), ())


def make(
  names: tuple[str, ...],
  config: Config,
  generate: sampling.Config,
  setup: Setup,
  tracker: Tracker,
  minimised: steps.Objective,
) -> dict[str, Evaluator]:
  """Builds evaluators by name.

  Args:
    names: of the evaluators.
    config: of all of them.
    generate: how samples are drawn.
    setup: model, text and devices.
    tracker: takes the samples.
    minimised: what the model is trained by.
  """
  tokenizer = setup.store.tokenizer

  def write(params: Any, prompts: tuple[str, ...]) -> list[str]:
    return samples.write(
      setup.model,
      params,
      tokenizer,
      prompts,
      generate,
      prefixed=setup.batch.sees_sources,
    )

  def show(params: Any, step: int) -> dict[str, float]:
    for prompt, text in zip(
      config.prompts, write(params, config.prompts), strict=True
    ):
      tracker.text(step, "sample", text)
      tracker.say(f"--- {prompt!r} goes on:\n{text}\n---")
    return {}

  def compress(params: Any, step: int) -> dict[str, float]:
    del params, step
    return compression.bits_per_byte(_texts(setup))

  def count(params: Any, step: int) -> dict[str, float]:
    del params, step
    corpora = setup.store.train, setup.store.heldout
    return counting.bits_per_byte(*corpora, tokenizer, config.n_gram)

  def python(params: Any, step: int) -> dict[str, float]:
    texts = write(params, config.n_python * ("",))
    for text in texts:
      tracker.text(step, "python", text)
    return {"python_share": syntax.share(texts)}

  made = {
    "perplexity": lambda: perplexity.make(
      setup.model, setup.heldout, tokenizer.token_bytes, setup.layout
    ),
    "objective": lambda: objective.make(
      minimised, setup.model, setup.heldout, setup.layout
    ),
    "samples": lambda: show,
    "compression": lambda: compress,
    "ngram": lambda: count,
    "python": lambda: python,
  }
  return {name: made[name]() for name in names}


def _texts(setup: Setup) -> Iterator[str]:
  """The held-out documents, decoded: the bytes that perplexity is over."""
  for corpus in setup.store.heldout:
    for i in range(len(corpus)):
      yield setup.store.tokenizer.decode(corpus[i])
