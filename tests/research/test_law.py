"""Laws that were planted are found again, and intervals hold them."""

import csv
import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from research.scaling import fit, law, points, power

PLANTED = law.Law(1.69, 406.4, 410.7, 0.34, 0.28)  # Chinchilla's, 2203.15556


def runs(noise: float, seed: int = 0, n_levels: int = 4) -> points.Points:
  """Six sizes around the best at each compute; losses off by a share."""
  rng = np.random.default_rng(seed)
  c = np.repeat(np.geomspace(1e18, 1e21, n_levels), 6)
  n = PLANTED.best(c)[0] * np.tile([0.2, 0.4, 0.8, 1.3, 2.5, 5], n_levels)
  d = c / points.FLOPS / n
  wrong = np.exp(noise * rng.normal(size=c.size))
  return points.Points(n, d, PLANTED.loss(n, d) * wrong)


def test_a_planted_law_is_found():
  found = law.fit(runs(0.0))
  for name in law.NAMES:
    assert getattr(found, name) == pytest.approx(getattr(PLANTED, name), 1e-5)


def test_the_best_size_is_the_lowest_of_all_at_its_compute():
  c = 3e20
  n, d = PLANTED.best(c)
  assert points.FLOPS * n * d == pytest.approx(c)
  others = n * np.geomspace(0.9, 1.1, 201)
  losses = PLANTED.loss(others, c / points.FLOPS / others)
  assert others[losses.argmin()] == pytest.approx(n, 2e-3)
  # N_best = k C^a.
  more, _ = PLANTED.best(100 * c)
  assert np.log(more / n) / np.log(100) == pytest.approx(PLANTED.exponent)


def test_the_gradient_is_that_of_the_objective():
  problem = law._Problem(runs(0.01))
  rng = np.random.default_rng(0)
  for vector in rng.normal(0, 0.3, (5, 5)):
    value, gradient = problem._value_and_gradient(vector)
    assert value == pytest.approx(problem.value(vector))
    for i, step in enumerate(1e-6 * np.eye(5)):
      there, here = problem.value(vector + step), problem.value(vector - step)
      assert gradient[i] == pytest.approx((there - here) / 2e-6, rel=1e-4)


def test_isoflop_parabolas_find_the_exponent():
  found, drawn = power.best_sizes(runs(0.002, n_levels=6), n_draws=100)
  low, high = law.interval([one.exponent for one in drawn])
  assert low < PLANTED.exponent < high and high - low < 0.1
  assert found.exponent == pytest.approx(PLANTED.exponent, abs=0.03)
  valleys = power.valleys(runs(0.0))
  assert all(valley.is_inside for valley in valleys)
  for valley in valleys:
    assert valley.n == pytest.approx(PLANTED.best(valley.c)[0], rel=0.1)


def test_the_page_of_the_micro_sweep_says_what_its_points_say():
  folder = epath.Path(law.__file__).parent
  found = points.read(folder / "result.csv")
  page = (folder / "RESULT.md").read_text()
  fitted = law.fit(found)
  for name in ("E", "alpha", "beta"):
    (said,) = re.findall(rf"^  {name} +([\d.]+) +\[", page, re.M)
    assert float(said) == pytest.approx(getattr(fitted, name), 1e-3)
  of_law, of_valleys = map(
    float, re.findall(r"^  N_best ~ C\^ +([\d.]+) ", page, re.M)
  )
  assert of_law == pytest.approx(fitted.exponent, 1e-3)
  assert of_valleys == pytest.approx(
    power.best_sizes(found, 1)[0].exponent, 1e-3
  )


@pytest.mark.parametrize("kept", ["A", "B"])
def test_runs_that_one_thing_holds_back_still_give_numbers(kept):
  """Wide intervals, and none that is not a number."""
  gone = {"A": "B", "B": "A"}[kept]
  planted = dataclasses.replace(PLANTED, **{gone: 0.0})
  found = runs(0.01)
  found = dataclasses.replace(found, loss=planted.loss(found.n, found.d))
  told = fit.report(found, n_draws=10, compute=[])
  json.dumps(told, allow_nan=False)
  power = {"A": "alpha", "B": "beta"}[kept]
  assert told[power] == pytest.approx(getattr(PLANTED, power), 0.02)


def test_a_power_law_along_the_frontier():
  n = np.geomspace(1e6, 1e9, 8)
  alone = points.of(n, np.full(8, 1e12), (8.8e13 / n) ** 0.076)  # Kaplan's L(N)
  worse = points.of(n, np.full(8, 1e12), 1.2 * alone.loss)
  both = points.of(
    [*alone.n, *worse.n], [*alone.d, *worse.d], [*alone.loss, *worse.loss]
  )
  assert len(power.frontier(both, "n")) == 8
  found, drawn = power.kaplan(both, 20)["n"]
  assert found.exponent == pytest.approx(-0.076, 1e-6)
  assert all(one.exponent == pytest.approx(-0.076, 1e-6) for one in drawn)


def test_the_law_of_cheap_runs_tells_dear_ones():
  assert law.extrapolated(runs(0.0)) < 1e-6
  assert 0 < law.extrapolated(runs(0.003)) < 0.02


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (lambda p: p[np.arange(5)], "needs 6 or more"),
    (lambda p: points.Points(p.n, 0 * p.d + 1e9, p.loss), "1 values of D"),
    (lambda p: points.Points(p.n, p.d, p.loss * np.nan), "loss=nan of point 1"),
  ],
)
def test_what_tells_no_law_is_refused(change, said):
  with pytest.raises(ValueError, match=said):
    law.fit(change(runs(0.01)))


def _write(path, found: points.Points, columns=("N", "D", "loss")):
  with path.open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(columns)
    table.writerows(zip(found.n, found.d, found.loss, strict=True))


def test_a_file_of_points_becomes_a_report_and_a_picture(tmp_path):
  """The planted numbers lie in the intervals of the last line, JSON."""
  _write(tmp_path / "points.csv", runs(0.003, seed=3))
  done = subprocess.run(
    [
      *(sys.executable, "-m", "research.scaling.fit", "--draws=60"),
      f"--points={tmp_path}/points.csv",
      f"--picture={tmp_path}/law.png",
      "--compute=1e22",
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  told = json.loads(done.stdout.splitlines()[-1])
  for name in ("alpha", "beta", "exponent"):
    low, high = told[f"{name}_interval"]
    assert low < getattr(PLANTED, name) < high
  best = told["best"][0]
  low, high = best["N_interval"]
  assert low < PLANTED.best(1e22)[0] < high
  assert (tmp_path / "law.png").stat().st_size > 50_000


def test_files_that_are_no_points_are_refused(tmp_path):
  path = epath.Path(tmp_path) / "points.csv"
  with pytest.raises(ValueError, match="does not exist"):
    points.read(path)
  path.write_text("N,tokens,loss\n1,2,3\n")
  with pytest.raises(ValueError, match="no column D"):
    points.read(path)
  path.write_text("N,D,loss\n1,2,3\n1,x,3\n")
  with pytest.raises(ValueError, match=r"points.csv:3: .*'x'"):
    points.read(path)


@pytest.mark.slow
def test_nine_of_ten_intervals_hold_the_truth():
  """Coverage in simulation, of 60 sweeps; the binomial's own error is 4 %."""
  held = {"alpha": 0, "beta": 0, "exponent": 0}
  n_sweeps = 60
  for seed in range(n_sweeps):
    found = runs(0.004, seed, n_levels=6)
    drawn = law.resampled(found, law.fit(found), 100, seed)
    for name in held:
      low, high = law.intervals(drawn, name)
      held[name] += low <= getattr(PLANTED, name) <= high
  assert all(0.8 <= count / n_sweeps <= 1 for count in held.values()), held


def test_a_report_is_plain_json():
  told = fit.report(runs(0.003), 20, [])
  assert json.loads(json.dumps(told))["runs"] == 24
  assert any("alpha" in line for line in fit.lines(told))
