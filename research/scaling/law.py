"""L(N, D) = E + A / N^alpha + B / D^beta, fitted to runs: arXiv 2203.15556.

As there (appendix D.3): Huber's loss of the logarithms (delta 1e-3) is minimised
from a grid of 900 starts, here those that begin lowest, and by BFGS, not L-BFGS: of
five numbers no memory has to be limited, and SciPy's L-BFGS wakes all threads of
the BLAS for them (200 against 2 ms a search).

Intervals come from runs that are drawn again with replacement (2404.10102 shows
what becomes of ones that are too narrow).
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Float

from research.scaling.points import FLOPS, Points

DELTA = 1e-3  # where Huber's loss turns from a square to a line; nats, in logs
N_FOLLOWED = 24  # starts
NAMES = ("E", "A", "B", "alpha", "beta")
# Where a law is sought: log E, the logs of its terms at the runs' middle, alpha and
# beta. Runs, or a draw of them, that do not ask for a term would send it to nothing.
_LOW = np.array([-15.0, -15.0, -15.0, 0.01, 0.01])
_HIGH = np.array([5.0, 5.0, 5.0, 3.0, 3.0])
_WALL = 1e3  # how steep it rises beyond


@dataclasses.dataclass(frozen=True)
class Law:
  """The five numbers."""

  E: float  # nats a token that no model saves
  A: float
  B: float
  alpha: float
  beta: float

  def loss(self, n, d):
    """Nats a token of models of n parameters after d tokens."""
    return self.E + self.A / n**self.alpha + self.B / d**self.beta

  def best(self, c):
    """(N, D) of the lowest loss at so many FLOPs, C = 6 N D."""
    power = 1 / (self.alpha + self.beta)
    ratio = (self.alpha * self.A / (self.beta * self.B)) ** power
    n = ratio * (np.asarray(c) / FLOPS) ** (self.beta * power)
    return n, np.asarray(c) / FLOPS / n

  @property
  def exponent(self) -> float:
    """a of N_best = k C^a."""
    return self.beta / (self.alpha + self.beta)


def fit(points: Points) -> Law:
  """The law of some runs.

  Raises:
    ValueError: fewer runs than numbers, or runs that differ in one thing only.
  """
  check(points)
  grid = itertools.product(
    np.linspace(-1, 1, 5),  # log E
    np.linspace(0, 25, 6),  # log A
    np.linspace(0, 25, 6),  # log B
    np.linspace(0, 2, 5),  # alpha
    np.linspace(0, 2, 5),  # beta
  )
  problem = _Problem(points)
  starts = problem.inside(np.array([*grid]))
  lowest = np.argsort(problem.value(starts))[:N_FOLLOWED]
  return problem.follow(starts[lowest])


def check(points: Points) -> None:
  """Checks that a law can be told from these runs.

  Raises:
    ValueError: it cannot.
  """
  if len(points) < 6:
    raise ValueError(
      f"{len(points)} runs: a law of five numbers needs 6 or more."
    )
  for name in ("n", "d"):
    if len(np.unique(getattr(points, name))) < 3:
      raise ValueError(
        f"the runs have {len(np.unique(getattr(points, name)))} values of "
        f"{name.upper()}: an exponent needs 3 or more."
      )


def resampled(
  points: Points, fitted: Law, n_draws: int, seed: int = 0
) -> list[Law]:
  """Laws of runs that are drawn again: a spread to read intervals from.

  Args:
    points: the runs.
    fitted: their law, where each search begins.
    n_draws: how many.
    seed: of the draws.
  """
  rng = np.random.default_rng(seed)
  start = np.array([*np.log([fitted.E, fitted.A, fitted.B]), 0, 0])
  start[3:] = fitted.alpha, fitted.beta
  laws: list[Law] = []
  while len(laws) < n_draws:
    drawn = points[rng.integers(0, len(points), len(points))]
    if min(len(np.unique(drawn.n)), len(np.unique(drawn.d))) < 3:
      continue  # tells nothing of an exponent
    problem = _Problem(drawn)
    own = problem.inside(start)
    # Around the law too: a draw may have a lower valley beside it.
    near = own + rng.normal(0, 0.05, (2, 5))
    laws.append(problem.follow(np.stack([own, *near])))
  return laws


class Interval(NamedTuple):
  """Of a share of the draws."""

  low: float
  high: float


def interval(values, share: float = 0.9) -> Interval:
  """The middle share of some numbers."""
  low, high = np.quantile(
    np.asarray(values), [(1 - share) / 2, (1 + share) / 2]
  )
  return Interval(float(low), float(high))


def intervals(
  laws: list[Law], of: Callable[[Law], float] | str, share: float = 0.9
) -> Interval:
  """The interval of a number of theirs, by its name or as a function."""
  read = of if callable(of) else lambda law: getattr(law, of)
  return interval([read(law) for law in laws], share)


def extrapolated(points: Points, share: float = 0.25) -> float:
  """How far the law of the cheaper runs is from the losses of the dearer ones.

  Args:
    points: the runs.
    share: of the runs, by compute, that the law does not see.

  Returns:
    The mean relative error.
  """
  order = np.argsort(points.c)
  n_kept = len(points) - max(1, round(share * len(points)))
  law = fit(points[order[:n_kept]])
  unseen = points[order[n_kept:]]
  return float(np.mean(np.abs(law.loss(unseen.n, unseen.d) / unseen.loss - 1)))


class _Problem:
  """The objective of some runs, in numbers that hardly pull at each other.

  A at the runs' middle N, alpha for their spread, and so B and beta: of A as it
  is written, a search would creep along a ridge.
  """

  def __init__(self, points: Points):
    self._log_loss = np.log(points.loss)
    logs = np.stack([np.log(points.n), np.log(points.d)])
    self._middle, self._spread = logs.mean(1), logs.std(1)
    self._logs = (logs - self._middle[:, None]) / self._spread[:, None]
    unit = np.array([1.0, 1.0, 1.0, *self._spread])
    self._low, self._high = _LOW * unit, _HIGH * unit

  def inside(self, vectors: Float[np.ndarray, "*S 5"]):
    """log E, log A, log B, alpha and beta, in these numbers."""
    e, ab, powers = vectors[..., :1], vectors[..., 1:3], vectors[..., 3:]
    return np.concatenate(
      [e, ab - powers * self._middle, powers * self._spread], -1
    )

  def law(self, vector: Float[np.ndarray, "5"]) -> Law:
    """The law of these numbers."""
    powers = vector[3:] / self._spread
    ab = np.exp(vector[1:3] + powers * self._middle)
    return Law(np.exp(vector[0]).item(), *ab.tolist(), *powers.tolist())

  def value(self, vectors: Float[np.ndarray, "*S 5"]):
    """Huber's loss, in units of its delta: near 1, as a search expects it."""
    size = np.abs(self._residuals(self._terms(vectors)))
    line = size - DELTA / 2
    misses = np.where(size <= DELTA, size**2 / (2 * DELTA), line).sum(-1)
    return misses + _WALL / 2 * (self._beyond(vectors) ** 2).sum(-1)

  def follow(self, starts: Float[np.ndarray, "S 5"]) -> Law:
    """Where the lowest of some searches ends."""
    ends = [
      scipy.optimize.minimize(
        self._value_and_gradient,
        start,
        jac=True,
        method="BFGS",
        options={"maxiter": 1000, "gtol": 1e-8},
      )
      for start in starts
    ]
    lowest = min(ends, key=lambda end: end.fun).x
    return self.law(np.clip(lowest, self._low, self._high))

  def _beyond(self, vectors):
    """How far each number is outside of where it is sought."""
    return vectors - np.clip(vectors, self._low, self._high)

  def _terms(self, vectors):
    """log of each of the three terms: [..., P, 3]."""
    e, a, b, alpha, beta = np.moveaxis(vectors, -1, 0)[..., None]
    log_n, log_d = self._logs
    return np.stack([e + 0 * log_n, a - alpha * log_n, b - beta * log_d], -1)

  def _residuals(self, terms):
    return np.logaddexp.reduce(terms, -1) - self._log_loss

  def _value_and_gradient(self, vector):
    terms = self._terms(vector)
    residuals = self._residuals(terms)
    shares = np.exp(terms - (residuals + self._log_loss)[:, None])
    pull = np.clip(residuals / DELTA, -1, 1)[:, None] * shares
    log_n, log_d = self._logs
    size = np.abs(residuals)
    value = np.where(
      size <= DELTA, size**2 / (2 * DELTA), size - DELTA / 2
    ).sum()
    powers = -(pull[:, 1] @ log_n), -(pull[:, 2] @ log_d)
    beyond = self._beyond(vector)
    value += _WALL / 2 * (beyond**2).sum()
    return value, np.array([*pull.sum(0), *powers]) + _WALL * beyond
