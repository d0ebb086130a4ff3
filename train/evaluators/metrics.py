"""From the records of items to figures with standard errors.

What is a mean over items has the standard error of a mean; what is not (F1,
MCC, perplexities, BLEU) has the bootstrap's. BLEU and chrF are sacrebleu's, with
its signature; ROUGE is rouge-score's.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from train.evaluators import uncertainty

Record = dict[str, Any]
ROUGE = ("rouge1", "rouge2", "rougeL")
_TOOLS = {"bleu": "sacrebleu", "chrf": "sacrebleu"} | dict.fromkeys(
  ROUGE, "rouge_score"
)


class Figure(NamedTuple):
  """A number, and how far it may be trusted."""

  value: float
  stderr: float
  signature: str = ""  # of the tool that made it


def check(names: Sequence[str], known: Sequence[str]) -> None:
  """Refuses, before anything is asked, what could not be told of the answers.

  Args:
    names: of figures.
    known: of those that there are.

  Raises:
    ValueError: there is no such figure, or what makes it is not installed.
  """
  for name in names:
    if name not in known:
      raise ValueError(
        f"metrics: {name!r} is not known of such items; of these there are "
        f"{', '.join(known)}."
      )
    tool = _TOOLS.get(name)
    if tool and importlib.util.find_spec(tool) is None:
      raise ValueError(
        f"metric {name}: {tool} is not installed; pip install -e '.[eval]'."
      )


def figures(
  names: Sequence[str], records: Sequence[Record]
) -> dict[str, Figure]:
  """The figures by name, each over all records; see `check`."""
  return {name: figure(name, records) for name in names}


def figure(name: str, records: Sequence[Record]) -> Figure:
  """One figure; see `figures`."""
  if name in ("bleu", "chrf"):
    return _by_sacrebleu(name, records)
  statistic = over(name, records)
  n = len(records)
  value = statistic(np.arange(n))
  if name in records[0]["scores"]:
    values = np.array([r["scores"][name] for r in records], np.float64)
    return Figure(value, uncertainty.stderr_of_mean(values))
  return Figure(value, uncertainty.stderr(statistic, n))


def over(name: str, records: Sequence[Record]) -> uncertainty.Statistic:
  """The figure as a function of which records it is over.

  Raises:
    ValueError: these records know nothing of it.
  """
  if name in records[0]["scores"]:
    values = np.array([r["scores"][name] for r in records], np.float64)
    return lambda at: float(values[at].mean())
  if name in _OF_LABELS and "right" in records[0]:
    said = np.array([r["said"] for r in records])
    right = np.array([r["right"][0] for r in records])
    return lambda at: _OF_LABELS[name](right[at], said[at])
  if name in _PER and "n_bytes" in records[0]:
    key, turn = _PER[name]
    nll = -np.array([r["log_p"] for r in records], np.float64)
    count = np.array([r[key] for r in records], np.float64)
    return lambda at: float(turn(nll[at].sum() / count[at].sum()))
  known = [*records[0]["scores"]]
  raise ValueError(
    f"metrics: {name!r} is not known of these items; of each of them there is "
    f"{', '.join(known) or 'nothing'}."
  )


def f1(
  right: Int[np.ndarray, "N"], said: Int[np.ndarray, "N"]
) -> tuple[float, float]:
  """F1 of each label in the mean, and of all decisions together.

  A label counts that occurs in either; one that is never met has F1 0.
  """
  labels = np.union1d(right, said)
  hit = np.array([((right == k) & (said == k)).sum() for k in labels])
  n = np.array([(right == k).sum() + (said == k).sum() for k in labels])
  return float((2 * hit / n).mean()), float(2 * hit.sum() / n.sum())


def mcc(right: Int[np.ndarray, "N"], said: Int[np.ndarray, "N"]) -> float:
  """Matthews' correlation, of any number of labels; 0 where one is constant.

  Gorodkin 2004.
  """
  labels = np.union1d(right, said)
  r = (right[:, None] == labels[None]).astype(np.float64)
  s = (said[:, None] == labels[None]).astype(np.float64)
  r, s = r - r.mean(0), s - s.mean(0)
  norm = math.sqrt((r * r).sum() * (s * s).sum())
  return float((r * s).sum() / norm) if norm else 0.0


_OF_LABELS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
  "f1_macro": lambda right, said: f1(right, said)[0],
  "f1_micro": lambda right, said: f1(right, said)[1],
  "mcc": mcc,
}
_PER: dict[str, tuple[str, Callable[[float], float]]] = {
  "loss": ("n_tokens", float),
  "bits_per_byte": ("n_bytes", lambda nats: nats / math.log(2)),
  "byte_perplexity": ("n_bytes", math.exp),
  "word_perplexity": ("n_words", lambda nats: math.exp(min(nats, 700))),
  "token_perplexity": ("n_tokens", lambda nats: math.exp(min(nats, 700))),
}


def _by_sacrebleu(name: str, records: Sequence[Record]) -> Figure:
  """Of the first text that was written to each item."""
  from sacrebleu.metrics import BLEU, CHRF

  metric = {"bleu": BLEU, "chrf": CHRF}[name]()
  texts = [r["texts"][0] for r in records]
  references = [[r["reference"] for r in records]]
  many = len(records) > 1
  draws = {"n_bootstrap": uncertainty.N_DRAWS} if many else {}
  score = metric.corpus_score(texts, references, **draws)
  # sacrebleu tells half of the 95 % interval.
  spread = float(score._ci / 1.96) if many else math.nan
  return Figure(float(score.score), spread, str(metric.get_signature()))


def rouge(reference: str, text: str) -> dict[str, float]:
  """ROUGE-1, 2 and L: F of one text, with stemming, as papers on XSum do."""
  from rouge_score import rouge_scorer

  scorer = rouge_scorer.RougeScorer(ROUGE, use_stemmer=True)
  return {k: v.fmeasure for k, v in scorer.score(reference, text).items()}
