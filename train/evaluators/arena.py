"""Who is stronger, from games: Bradley-Terry with intervals, and Elo.

Bradley and Terry 1952, as in arXiv 2403.04132: one strength for each player
such that exp(a) / (exp(a) + exp(b)) of the games of a and b are a's; a tie is
half a game won by each. Strengths are told on Elo's scale, 1000 in the mean:
400 points are ten to one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_SCALE = 400 / math.log(10)
_POINTS = {"a": 1.0, "b": 0.0, "tie": 0.5}
# Of a normal prior around the mean, in nats: so wide that it only keeps samples
# of the bootstrap finite in which somebody lost every game.
_PRIOR_STD = 10.0


class Game(NamedTuple):
  """Two players and what came of it."""

  a: str
  b: str
  winner: str  # "a", "b" or "tie"


class Standing(NamedTuple):
  """A player's place."""

  name: str
  strength: float
  low: float  # of the 95 % interval
  high: float
  n_games: int


def games(rows: Sequence[dict]) -> list[Game]:
  """Games of rows with `a`, `b` and `winner`.

  Raises:
    ValueError: a row that is no game.
  """
  found = []
  for i, row in enumerate(rows):
    if not {"a", "b", "winner"} <= row.keys() or row["winner"] not in _POINTS:
      raise ValueError(
        f"row {i} is no game: expected a, b (names) and winner (a, b or tie), "
        f"got {row}."
      )
    if row["a"] == row["b"]:
      raise ValueError(f"row {i}: {row['a']!r} plays against itself.")
    found.append(Game(row["a"], row["b"], row["winner"]))
  return found


def standings(
  played: Sequence[Game], n_draws: int = 500, seed: int = 0
) -> list[Standing]:
  """The players by strength, with the bootstrap's intervals over games.

  Raises:
    ValueError: some players are never beaten by any of the others, so that
      nothing says how much stronger they are.
  """
  names = sorted({name for game in played for name in (game.a, game.b)})
  place = {name: i for i, name in enumerate(names)}
  pairs = np.array([(place[g.a], place[g.b]) for g in played], np.int64)
  points = np.array([_POINTS[g.winner] for g in played])
  n = len(names)
  wins = _wins(pairs, points, n)
  reached = _reachable(wins > 0)
  if not reached.all():
    # From a player one comes to all whom it beat, and so on.
    above = [
      names[i] for i in range(n) if reached[i].sum() == reached.sum(1).max()
    ]
    apart = [name for name in names if name not in above] or above[1:]
    raise ValueError(
      f"no game says how far {', '.join(above[:5])} and {', '.join(apart[:5])} "
      "lie apart: each of two groups has to win once against the other. Play "
      "more games, or leave some players out."
    )
  rng = np.random.default_rng(seed)
  draws = []
  for _ in range(n_draws):
    at = rng.integers(0, len(pairs), len(pairs))
    draws.append(strengths(_wins(pairs[at], points[at], n)))
  low, high = np.quantile(draws, [0.025, 0.975], axis=0)
  counts = np.bincount(pairs.reshape(-1), minlength=n)
  best = strengths(wins)
  order = np.argsort(-best, kind="stable")
  return [
    Standing(
      names[i], float(best[i]), float(low[i]), float(high[i]), int(counts[i])
    )
    for i in order
  ]


def strengths(wins: Float[np.ndarray, "N N"]) -> Float[np.ndarray, "N"]:
  """The likeliest strengths; wins[i, j] are the games that i won against j."""
  n = len(wins)
  played = wins + wins.T
  theta = np.zeros(n)
  prior = 1 / _PRIOR_STD**2 / max(played.sum(), 1)
  for _ in range(100):
    p = 1 / (1 + np.exp(theta[None] - theta[:, None]))
    slope = (wins - played * p).sum(1) - prior * theta
    curve = -played * p * (1 - p)
    curve = curve - np.diag(curve.sum(1)) + prior * np.eye(n)
    step = np.linalg.solve(curve, slope)
    theta += step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
    theta -= theta.mean()
    if np.abs(step).max() < 1e-10:
      break
  return 1000 + _SCALE * theta


def elo(played: Sequence[Game], k: float = 4.0) -> dict[str, float]:
  """Elo's rating after game upon game, from 1000; the order of games counts."""
  ratings: dict[str, float] = {}
  for game in played:
    a, b = (ratings.setdefault(name, 1000.0) for name in (game.a, game.b))
    expected = 1 / (1 + 10 ** ((b - a) / 400))
    gain = k * (_POINTS[game.winner] - expected)
    ratings[game.a] += gain
    ratings[game.b] -= gain
  return ratings


def text(played: Sequence[Game]) -> str:
  """Standings for a terminal."""
  ratings = elo(played)
  row = "{:<24}  {:>13}  {:>16}  {:>6}  {:>6}"
  lines = [row.format("name", "Bradley-Terry", "95 % interval", "Elo", "games")]
  for name, strength, low, high, n in standings(played):
    told = f"{strength:.0f}", f"{low:.0f} to {high:.0f}", f"{ratings[name]:.0f}"
    lines.append(row.format(name, *told, n))
  return "\n".join(lines)


def _wins(
  pairs: Int[np.ndarray, "M 2"], points: Float[np.ndarray, "M"], n: int
) -> Float[np.ndarray, "N N"]:
  wins = np.zeros((n, n))
  np.add.at(wins, (pairs[:, 0], pairs[:, 1]), points)
  np.add.at(wins, (pairs[:, 1], pairs[:, 0]), 1 - points)
  return wins


def _reachable(beats: Bool[np.ndarray, "N N"]) -> Bool[np.ndarray, "N N"]:
  """Whom each comes to, from one it beat to one that one beat."""
  reached = beats | np.eye(len(beats), dtype=bool)
  for middle in range(len(beats)):
    reached |= reached[:, middle, None] & reached[None, middle]
  return reached
