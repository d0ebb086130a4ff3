"""How far a figure may be trusted, and whether two differ.

Bootstrap: Efron 1979; paired, for language models: Koehn 2004. McNemar 1947, in
its exact form.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

N_DRAWS = 1000
# Rows of a sample, by their places -> a figure.
Statistic = Callable[[Int[np.ndarray, "M"]], float]


class Difference(NamedTuple):
  """Of two on the same items: the second minus the first."""

  value: float
  stderr: float
  low: float  # of the 95 % interval
  high: float
  p: float  # two-sided: how often chance alone gives as much


def stderr_of_mean(values: Float[np.ndarray, "N"]) -> float:
  """The standard error of a mean; NaN of fewer than two values."""
  if len(values) < 2:
    return math.nan
  return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def bootstrap(
  statistic: Statistic, n: int, n_draws: int = N_DRAWS, seed: int = 0
) -> Float[np.ndarray, "D"]:
  """The figures of samples that are drawn from n items with replacement."""
  rng = np.random.default_rng(seed)
  return np.array([statistic(rng.integers(0, n, n)) for _ in range(n_draws)])


def stderr(statistic: Statistic, n: int, n_draws: int = N_DRAWS) -> float:
  """The bootstrap's standard error of a figure over n items; NaN of one."""
  if n < 2:
    return math.nan
  return float(np.std(bootstrap(statistic, n, n_draws), ddof=1))


def paired(
  first: Statistic, second: Statistic, n: int, n_draws: int = 10 * N_DRAWS
) -> Difference:
  """Compares two figures over the same items, drawn together.

  p is of the bootstrap shifted to no difference.
  """
  everything = np.arange(n)
  value = second(everything) - first(everything)
  draws = bootstrap(lambda at: second(at) - first(at), n, n_draws)
  low, high = np.quantile(draws, [0.025, 0.975])
  beyond = np.abs(draws - value) >= abs(value) - 1e-12
  p = (1 + beyond.sum()) / (1 + n_draws)
  spread = float(np.std(draws, ddof=1)) if n > 1 else math.nan
  return Difference(value, spread, float(low), float(high), float(p))


def mcnemar(
  first: Float[np.ndarray, "N"], second: Float[np.ndarray, "N"]
) -> float:
  """p of two models that are right (1) or wrong (0) about the same items.

  Two-sided and exact: of the items about which they disagree, each is as
  likely for one as for the other.
  """
  only_first = int(((first > 0.5) & (second <= 0.5)).sum())
  only_second = int(((first <= 0.5) & (second > 0.5)).sum())
  n = only_first + only_second
  tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
  return min(1.0, 2 * tail / 2**n)
