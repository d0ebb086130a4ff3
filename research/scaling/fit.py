"""Fits scaling laws to runs, and says how sure they are.

    python -m research.scaling.fit --points=FILE.csv
    python -m research.scaling.fit --runs='runs/sweep/*' --picture=runs/sweep/law.png

FILE.csv has the columns N (parameters), D (tokens) and loss (nats a token); --runs
reads finished runs instead. Prints tables, draws --picture, and ends with one line
of JSON: E, A, B, alpha, beta, each with its interval, and what follows from them.
"""

import glob
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import app, flags
from etils import epath

from research.scaling import law as laws
from research.scaling import plots, points, power

_POINTS = flags.DEFINE_string("points", "", "CSV file with N, D, loss")
_RUNS = flags.DEFINE_string("runs", "", "pattern of the folders of runs")
_PICTURE = flags.DEFINE_string("picture", "", "file to draw; none if empty")
_DRAWS = flags.DEFINE_integer("draws", 200, "of the bootstrap", 10)
_COMPUTE = flags.DEFINE_list("compute", [], "FLOPs to tell the best N and D of")


def report(found: points.Points, n_draws: int, compute: list[float]) -> dict:
  """All that is told of some runs: plain JSON.

  Args:
    found: the runs.
    n_draws: of the bootstrap.
    compute: FLOPs to tell the best N and D of; ten times the dearest run if none.

  Raises:
    ValueError: the runs do not tell a law.
  """
  law = laws.fit(found)
  drawn = laws.resampled(found, law, n_draws)
  out: dict[str, Any] = {"runs": len(found)}
  for name in laws.NAMES:
    out[name] = getattr(law, name)
    out[f"{name}_interval"] = laws.intervals(drawn, name)
  out["exponent"] = law.exponent
  out["exponent_interval"] = laws.intervals(drawn, lambda one: one.exponent)
  out["best"] = [
    _best(law, drawn, c) for c in compute or [10 * found.c.max().item()]
  ]
  if len(found) >= 9:
    out["extrapolation_error"] = laws.extrapolated(found)
  out["isoflop"] = _isoflop(found, n_draws)
  out["kaplan"] = {
    name: {
      "exponent": one.exponent,
      "interval": laws.interval([other.exponent for other in more]),
    }
    for name, (one, more) in power.kaplan(found, n_draws).items()
  }
  return out


def _best(law: laws.Law, drawn: list[laws.Law], c: float) -> dict[str, Any]:
  n, d = law.best(c)
  others = np.array([one.best(c) for one in drawn])
  return {
    "compute": c,
    "N": float(n),
    "N_interval": laws.interval(others[:, 0]),
    "D": float(d),
    "D_interval": laws.interval(others[:, 1]),
    "loss": float(law.loss(n, d)),
    "loss_interval": laws.interval([one.loss(n, d) for one in drawn]),
  }


def _isoflop(found: points.Points, n_draws: int) -> dict[str, Any] | None:
  if len(power.valleys(found)) < 2:
    return None
  law, drawn = power.best_sizes(found, n_draws)
  told = {"exponent": law.exponent, "interval": None}
  if drawn:
    told["interval"] = laws.interval([one.exponent for one in drawn])
  return told


def lines(told: dict[str, Any]) -> Iterator[str]:
  """The report for people."""

  def row(name, value, interval):
    low, high = interval
    return f"  {name:<24}{value:>12.4g}   [{low:.4g}, {high:.4g}]"

  yield f"{told['runs']} runs; intervals hold 90% of the bootstrap's draws"
  yield "L = E + A / N^alpha + B / D^beta"
  for name in (*laws.NAMES, "exponent"):
    shown = "N_best ~ C^" if name == "exponent" else name
    yield row(shown, told[name], told[f"{name}_interval"])
  for best in told["best"]:
    yield f"at {best['compute']:.3g} FLOPs"
    for name in ("N", "D", "loss"):
      yield row(name, best[name], best[f"{name}_interval"])
  if "extrapolation_error" in told:
    error = told["extrapolation_error"]
    yield f"law of the cheapest 75% of runs, on the others: {error:.2%} apart"
  if (iso := told["isoflop"]) and iso["interval"]:
    yield "isoFLOP parabolas"
    yield row("N_best ~ C^", iso["exponent"], iso["interval"])
  for name, one in told["kaplan"].items():
    yield f"runs that none with less {name.upper()} beats: L ~ {name.upper()}^a"
    yield row("a", one["exponent"], one["interval"])


def main(argv: list[str]) -> None:
  """Reads, fits, tells."""
  if len(argv) > 1 or bool(_POINTS.value) == bool(_RUNS.value):
    raise app.UsageError("give --points=FILE.csv or --runs=PATTERN.")
  try:
    compute = [float(c) for c in _COMPUTE.value]
    if _POINTS.value:
      found = points.read(epath.Path(_POINTS.value))
    else:
      folders = sorted(glob.glob(_RUNS.value))
      found = points.of_runs([epath.Path(folder) for folder in folders])
    told = report(found, _DRAWS.value, compute)
  except ValueError as error:
    print(f"error: {error}", flush=True)
    raise SystemExit(2) from None
  print(*lines(told), sep="\n")
  if _PICTURE.value:
    law = laws.Law(**{name: told[name] for name in laws.NAMES})
    path = epath.Path(_PICTURE.value).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = plots.figure(found, law, laws.resampled(found, law, 50))
    with path.open("wb") as file:
      picture.savefig(file, dpi=130, format="png")
    print(f"picture: {path}")
  print(json.dumps(told))


if __name__ == "__main__":
  app.run(main)
