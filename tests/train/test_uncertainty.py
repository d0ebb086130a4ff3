"""Figures and their errors, against known answers, sklearn's and simulation."""

import math
import sys

import numpy as np
import pytest

from train.evaluators import metrics, uncertainty

N_WORLDS = 2000


@pytest.mark.parametrize("n, p", [(100, 0.5), (150, 0.8)])
def test_the_bootstrap_covers_95_percent(n, p):
  """E7: within 2 %; so does the standard error of a mean."""
  rng = np.random.default_rng(0)
  covered = np.zeros(2)
  for _ in range(N_WORLDS):
    values = (rng.random(n) < p).astype(np.float64)
    # The draws of `bootstrap`, of all worlds with one generator.
    draws = values[rng.integers(0, n, (200, n))].mean(1)
    for i, spread in enumerate(
      (np.std(draws, ddof=1), uncertainty.stderr_of_mean(values))
    ):
      covered[i] += abs(values.mean() - p) <= 1.96 * spread
  assert np.abs(covered / N_WORLDS - 0.95).max() < 0.02


def test_the_bootstrap_of_a_figure_covers_95_percent():
  """E7: of the function itself, for a figure that is no mean of items."""
  rng = np.random.default_rng(1)
  n, true, covered, n_worlds = 120, 2.0, 0, 600
  for _ in range(n_worlds):
    sizes = rng.integers(50, 150, n).astype(np.float64)
    costs = sizes * true + 20 * rng.standard_normal(n)
    ratio = lambda at, c=costs, s=sizes: float(c[at].sum() / s[at].sum())  # noqa: E731
    spread = uncertainty.stderr(ratio, n, n_draws=100)
    covered += abs(ratio(np.arange(n)) - true) <= 1.96 * spread
  # Of 600 worlds the share itself is known to 0.9 %.
  assert abs(covered / n_worlds - 0.95) < 0.028


def test_the_bootstrap_is_the_closed_form_of_a_mean():
  values = np.random.default_rng(2).random(400)
  found = uncertainty.stderr(lambda at: float(values[at].mean()), 400, 4000)
  assert found == pytest.approx(uncertainty.stderr_of_mean(values), rel=0.03)
  assert math.isnan(uncertainty.stderr_of_mean(values[:1]))
  assert math.isnan(uncertainty.stderr(lambda at: 0.0, 1))


def test_mcnemar_is_a_sign_test():
  first = np.array([1.0] * 9 + [0.0] * 3 + [1.0] * 50)
  second = np.array([0.0] * 9 + [1.0] * 3 + [1.0] * 50)
  # scipy.stats.binomtest(3, 12).pvalue
  assert uncertainty.mcnemar(first, second) == pytest.approx(0.14599609375)
  assert uncertainty.mcnemar(second, first) == pytest.approx(0.14599609375)
  assert uncertainty.mcnemar(first, first) == 1.0


def test_a_paired_comparison_sees_what_two_intervals_hide():
  rng = np.random.default_rng(3)
  hard = rng.random(300)
  first = (rng.random(300) < hard).astype(float)
  second = np.where(rng.random(300) < 0.1, 1.0, first)
  found = uncertainty.paired(
    lambda at: float(first[at].mean()), lambda at: float(second[at].mean()), 300
  )
  gain = second - first
  assert found.value == pytest.approx(gain.mean())
  assert found.stderr == pytest.approx(
    uncertainty.stderr_of_mean(gain), rel=0.05
  )
  assert found.low < found.value < found.high and found.low > 0
  assert found.p < 0.001
  same = uncertainty.paired(
    lambda at: float(first[at].mean()), lambda at: float(first[at].mean()), 300
  )
  assert (same.value, same.p) == (0.0, 1.0)


def test_chance_alone_is_seldom_significant():
  """p below 0.05 in about 5 % of worlds without a difference."""
  rng, n_low, n_worlds = np.random.default_rng(4), 0, 300
  for _ in range(n_worlds):
    a, b = (rng.random(80) < 0.5).astype(float), rng.random(80) < 0.5
    b = b.astype(float)
    found = uncertainty.paired(
      lambda at, a=a: float(a[at].mean()),
      lambda at, b=b: float(b[at].mean()),
      80,
      n_draws=200,
    )
    n_low += found.p < 0.05
  assert 0.02 < n_low / n_worlds < 0.09


def _labels(seed, n_labels=4, n=200):
  rng = np.random.default_rng(seed)
  right = rng.integers(0, n_labels, n)
  said = np.where(rng.random(n) < 0.6, right, rng.integers(0, n_labels, n))
  return right, said


def test_f1_and_mcc_have_known_answers():
  right = np.array([0, 0, 0, 1, 1, 2])
  said = np.array([0, 0, 1, 1, 1, 0])
  macro, micro = metrics.f1(right, said)
  # Label 0: 2*2/(3+3); 1: 2*2/(2+3); 2: 0. Micro is the share of hits.
  assert macro == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)
  assert micro == pytest.approx(4 / 6)
  binary = (
    np.array([1, 1, 1, 0, 0, 0, 0, 0]),
    np.array([1, 1, 0, 1, 0, 0, 0, 0]),
  )
  # (tp tn - fp fn) / sqrt(...), tp = 2, tn = 4, fp = fn = 1
  assert metrics.mcc(*binary) == pytest.approx((2 * 4 - 1) / (3 * 5))
  assert metrics.mcc(np.ones(4, int), np.array([1, 0, 1, 0])) == 0.0


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
def test_f1_and_mcc_are_those_of_sklearn(seed):
  from sklearn import metrics as sklearn

  right, said = _labels(seed, 2 + seed)
  macro, micro = metrics.f1(right, said)
  theirs = sklearn.f1_score
  assert macro == pytest.approx(theirs(right, said, average="macro"), rel=1e-12)
  assert micro == pytest.approx(theirs(right, said, average="micro"), rel=1e-12)
  assert metrics.mcc(right, said) == pytest.approx(
    sklearn.matthews_corrcoef(right, said), rel=1e-12
  )


PAIRS = [
  ("the cat sat on the mat by the door", "the cat sat on a mat near the door"),
  ("it rained all day in the old town", "all day it was raining in town"),
  ("nobody came", "nobody came"),
]


def _records():
  return [
    {"texts": [text], "reference": reference, "scores": {}}
    for reference, text in PAIRS
  ]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_bleu_and_chrf_are_those_of_sacrebleu(name):
  """E5: with its signature."""
  import sacrebleu

  found = metrics.figure(name, _records())
  theirs = getattr(sacrebleu, f"corpus_{name}")(
    [text for _, text in PAIRS], [[reference for reference, _ in PAIRS]]
  )
  assert found.value == theirs.score
  assert f"version:{sacrebleu.__version__}" in found.signature
  assert found.stderr > 0


@pytest.mark.parity
def test_rouge_is_that_of_rouge_score():
  """E5: F of each text, with stemming."""
  from rouge_score import rouge_scorer as scorer

  made = scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
  for reference, text in PAIRS:
    found, theirs = metrics.rouge(reference, text), made.score(reference, text)
    assert found["rouge1"] == theirs["rouge1"].fmeasure
    assert found["rougeL"] == theirs["rougeL"].fmeasure


@pytest.mark.parametrize("name", ["bleu", "chrf", *metrics.ROUGE])
def test_a_tool_that_is_missing_is_named(name, monkeypatch):
  """E5: with the way to have it."""
  for tool in ("sacrebleu", "rouge_score"):
    monkeypatch.setitem(sys.modules, tool, None)
  told = rf"metric {name}: \w+ is not installed; pip install"
  with pytest.raises(ValueError, match=told):
    metrics.check([name], [name])


def test_perplexities_are_of_all_texts_together():
  records = [
    {"log_p": -20.0, "n_bytes": 10, "n_words": 2, "n_tokens": 4, "scores": {}},
    {"log_p": -10.0, "n_bytes": 30, "n_words": 8, "n_tokens": 6, "scores": {}},
  ]
  names = "bits_per_byte byte_perplexity word_perplexity token_perplexity"
  found = [f.value for f in metrics.figures(names.split(), records).values()]
  expected = [30 / 40 / math.log(2), math.exp(0.75), math.exp(3), math.exp(3)]
  assert found == pytest.approx(expected, rel=1e-12)


def test_an_unknown_metric_is_told():
  records = [{"said": 0, "right": [0], "scores": {"acc": 1.0}}]
  with pytest.raises(ValueError, match="'bleurt' is not known.*there is acc"):
    metrics.figure("bleurt", records)
  with pytest.raises(ValueError, match="'bleurt' is not known.*there are acc"):
    metrics.check(["acc", "bleurt"], ["acc", "mcc"])
