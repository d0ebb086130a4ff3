"""Lets EleutherAI's lm-evaluation-harness ask any checkpoint.

    import lm_eval
    from etils import epath
    from sharding import mesh
    from train.evaluators import harness, subject

    who = subject.load(epath.Path("runs/quick"), mesh.Config())
    lm_eval.simple_evaluate(model=harness.make(who), tasks=["piqa"])

(pip install -e '.[lm-eval]'.) Requests go the way of our own tasks: sorted,
padded to few lengths, in batches over the mesh.
"""

from typing import Any

from train.evaluators import likelihood, samples, texts, writing
from train.evaluators.subject import Subject
from train.evaluators.task import Writing


def make(subject: Subject) -> Any:
  """An `lm_eval.api.model.LM`.

  Raises:
    ValueError: lm-eval is not installed.
  """
  try:
    from lm_eval.api.model import LM
  except ImportError as error:
    raise ValueError(
      "lm-eval is not installed; pip install -e '.[lm-eval]'."
    ) from error

  class Checkpoint(LM):
    """A checkpoint as lm-eval wants it."""

    def loglikelihood(self, requests, **_):
      """Of continuations, each behind its context."""
      pairs = [request.args for request in requests]
      asked = [likelihood.continuation(subject, *pair) for pair in pairs]
      return [tuple(a) for a in likelihood.answer(subject, asked)]

    def loglikelihood_rolling(self, requests, **_):
      """Of whole texts."""
      return texts.likelihoods(subject, [r.args[0] for r in requests])

    def generate_until(self, requests, **_):
      """Of prompts with the same settings together."""
      found: list[str] = [""] * len(requests)
      groups: dict[Writing, list[int]] = {}
      for i, request in enumerate(requests):
        groups.setdefault(settings(request.args[1]), []).append(i)
      for how, which in groups.items():
        asked = [requests[i].args[0] for i in which]
        begun, sources = samples.encode(subject.model, subject.tokenizer, asked)
        prompts = sources or begun
        written, _ = writing.write(subject, prompts, how, likelihood.at_once)
        for i, text in zip(which, written, strict=True):
          found[i] = text
      return found

    @property
    def tokenizer_name(self):
      """For lm-eval's cache of requests."""
      return subject.tokenizer.fingerprint

  return Checkpoint()


def settings(theirs: dict[str, Any]) -> Writing:
  """Their generation settings as ours.

  Raises:
    ValueError: a setting that is not known here.
  """
  known = {"until", "max_gen_toks", "temperature", "do_sample"}
  if unknown := set(theirs) - known:
    raise ValueError(
      f"generation settings {sorted(unknown)} are not known here; "
      f"{', '.join(sorted(known))} are."
    )
  stop = theirs.get("until", ())
  # Without do_sample a temperature means nothing, there as here.
  warm = theirs.get("do_sample", False)
  return Writing(
    stop=(stop,) if isinstance(stop, str) else tuple(stop),
    max_tokens=theirs.get("max_gen_toks", Writing().max_tokens),
    temperature=float(theirs.get("temperature", 1.0)) if warm else 0.0,
  )
