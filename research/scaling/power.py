"""Straight lines in logarithms: power laws, and the valleys of isoFLOP curves.

Kaplan's laws (arXiv 2001.08361) are L = (x_c / x)^alpha of N, D or C alone, along
the runs that nothing else holds back. Approach 2 of Chinchilla (2203.15556) fits a
parabola in log N to the runs of each compute; its lowest point is the best N.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from research.scaling.points import Points

SAME = 0.1  # compute that differs by less, relative, is one level


@dataclasses.dataclass(frozen=True)
class Power:
  """y = scale * x ** exponent."""

  scale: float
  exponent: float

  def __call__(self, x):
    """y of some x."""
    return self.scale * np.asarray(x) ** self.exponent


def fit(x: Float[np.ndarray, "P"], y: Float[np.ndarray, "P"]) -> Power:
  """The least squares of the logarithms.

  Raises:
    ValueError: fewer than two x, of those that differ by more than SAME.
  """
  if len(_cuts(x)) < 1:
    raise ValueError("a power law through 1 value of x: give 2 or more.")
  slope, height = np.polyfit(np.log(x), np.log(y), 1)
  return Power(float(np.exp(height)), float(slope))


def resampled(
  x: Float[np.ndarray, "P"],
  y: Float[np.ndarray, "P"],
  n_draws: int,
  seed: int = 0,
) -> list[Power]:
  """Laws of points that are drawn again."""
  rng, laws = np.random.default_rng(seed), []
  while len(laws) < n_draws:
    drawn = rng.integers(0, len(x), len(x))
    if len(_cuts(x[drawn])):
      laws.append(fit(x[drawn], y[drawn]))
  return laws


def frontier(points: Points, of: str) -> Points:
  """The runs that no other beats with as much or less of one thing.

  Args:
    points: the runs.
    of: "n", "d" or "c".
  """
  x = getattr(points, of)
  order = np.lexsort((points.loss, x))
  best, kept = np.inf, []
  for i in order:
    if points.loss[i] < best:
      best = points.loss[i]
      kept.append(i)
  return points[np.array(kept, int)]


@dataclasses.dataclass(frozen=True)
class Valley:
  """The runs of one compute, and the parabola through them."""

  c: float  # FLOPs
  runs: Points
  curve: tuple[float, float, float]  # loss of log N: highest power first

  @property
  def n(self) -> float:
    """Parameters of the lowest loss."""
    a, b, _ = self.curve
    return float(np.exp(-b / (2 * a)))

  @property
  def loss(self) -> float:
    """That loss."""
    return float(np.polyval(self.curve, np.log(self.n)))

  @property
  def is_inside(self) -> bool:
    """Whether the lowest point lies among the runs: else it is a guess."""
    return bool(self.runs.n.min() <= self.n <= self.runs.n.max())


def levels(points: Points) -> list[Points]:
  """The runs of each compute, the cheapest first."""
  order = np.argsort(points.c)
  return [points[part] for part in np.split(order, _cuts(points.c))]


def _cuts(x: Float[np.ndarray, "P"]) -> Int[np.ndarray, "C"]:
  """Where the x, put in order, go from one level to the next."""
  return np.flatnonzero(np.diff(np.log(np.sort(x))) > np.log1p(SAME)) + 1


def valleys(points: Points) -> list[Valley]:
  """Of every level of three sizes or more whose parabola opens upwards."""
  found = []
  for level in levels(points):
    if len(np.unique(level.n)) < 3:
      continue
    curve = np.polyfit(np.log(level.n), level.loss, 2)
    if curve[0] > 0:
      c = float(np.exp(np.log(level.c).mean()))
      found.append(Valley(c, level, tuple(map(float, curve))))
  return found


def best_sizes(
  points: Points, n_draws: int, seed: int = 0
) -> tuple[Power, list[Power]]:
  """N_best = k C^a through the valleys, and such laws of runs drawn again.

  Within a level runs are drawn again; a draw whose parabolas do not open
  upwards tells nothing, and is left out.

  Raises:
    ValueError: fewer than two levels have a valley.
  """
  found = valleys(points)
  if len(found) < 2:
    raise ValueError(
      f"{len(found)} levels of compute have a valley: two or more levels with "
      "three or more sizes each are needed, with the lowest loss between them."
    )
  law = _through(found)
  rng, laws, n_tried = np.random.default_rng(seed), [], 0
  while len(laws) < n_draws and n_tried < 20 * n_draws:
    n_tried += 1
    drawn = [v.runs[rng.integers(0, len(v.runs), len(v.runs))] for v in found]
    again = [w for v in drawn for w in valleys(v)]
    if len(again) == len(found):
      laws.append(_through(again))
  return law, laws


def _through(found: list[Valley]) -> Power:
  return fit(np.array([v.c for v in found]), np.array([v.n for v in found]))


def kaplan(
  points: Points, n_draws: int
) -> dict[str, tuple[Power, list[Power]]]:
  """L(N), L(D) and L(C), and what they are for points drawn again."""
  read: Callable[[Points, str], np.ndarray] = getattr
  found = {}
  for name in ("n", "d", "c"):
    edge = frontier(points, name)
    x = read(edge, name)
    if len(_cuts(x)):
      found[name] = fit(x, edge.loss), resampled(x, edge.loss, n_draws)
  return found
