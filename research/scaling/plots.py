"""Pictures of a fit: what was run, what the law says, and how sure it is."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from research.scaling import law as laws
from research.scaling import power
from research.scaling.points import FLOPS, Points
from train.core import curves

_COLORS = matplotlib.colormaps["viridis"]
_BAND = dict(alpha=0.2, linewidth=0)
_SMALL = dict(frameon=False, fontsize=8)
_MOST = 10  # entries of a legend
_APART = 30.0  # times that a best size may be from those of the runs
SHARE = 0.9  # of the draws, within a band


def figure(points: Points, law: laws.Law, drawn: list[laws.Law]) -> Figure:
  """Four panels: loss over D, over N at equal compute, N over C, and residuals.

  Args:
    points: the runs.
    law: theirs.
    drawn: laws of runs that were drawn again, for the bands.
  """
  made = Figure(figsize=(11, 8.5), layout="constrained")
  axes = made.subplots(2, 2)
  _curves(axes[0, 0], points, law, drawn)
  _valleys(axes[0, 1], points, law)
  _best(axes[1, 0], points, law, drawn)
  _residuals(axes[1, 1], points, law)
  for axis in axes.flat:
    curves.finish(axis)
  made.suptitle(
    f"L = {law.E:.3f} + {law.A:.3g} / N^{law.alpha:.3f} + "
    f"{law.B:.3g} / D^{law.beta:.3f}     {len(points)} runs; bands hold "
    f"{SHARE:.0%} of the laws of runs drawn again",
    fontsize=11,
    x=0.01,
    ha="left",
  )
  return made


def _label(axis: Axes, title: str, x: str, y: str) -> None:
  axis.set_title(title, loc="left", fontsize=11)
  axis.set(xlabel=x, ylabel=y)


def _shade(i: int, n: int):
  return _COLORS(0.85 * i / max(n - 1, 1))


def _band(axis, x, values, color) -> None:
  low, high = np.quantile(values, [(1 - SHARE) / 2, (1 + SHARE) / 2], axis=0)
  axis.fill_between(x, low, high, color=color, **_BAND)


def _curves(axis, points, law, drawn) -> None:
  sizes = np.unique(points.n)
  d = np.geomspace(points.d.min() / 1.3, points.d.max() * 1.3, 100)
  for i, n in enumerate(sizes):
    mine, color = points.n == n, _shade(i, len(sizes))
    axis.plot(d, law.loss(n, d), color=color, linewidth=1.2)
    _band(axis, d, [one.loss(n, d) for one in drawn], color)
    label = f"N = {_short(n)}"
    axis.plot(points.d[mine], points.loss[mine], "o", color=color, label=label)
  axis.set(xscale="log", yscale="log")
  curves.mark(axis.xaxis, _short)
  curves.mark(axis.yaxis)
  _label(axis, "every run, and the law", "tokens D", "loss (nats a token)")
  if len(sizes) <= _MOST:
    axis.legend(**_SMALL)


def _valleys(axis, points, law) -> None:
  found = power.valleys(points)
  levels = [v.runs for v in found] or power.levels(points)
  keys = [Line2D([], [], color="0.4", ls="--", lw=1, label="law")]
  for i, level in enumerate(levels):
    color = _shade(i, len(levels))
    n = np.geomspace(level.n.min() / 1.3, level.n.max() * 1.3, 100)
    c = np.exp(np.log(level.c).mean())
    axis.plot(n, law.loss(n, c / FLOPS / n), "--", color=color, linewidth=1)
    axis.plot(level.n, level.loss, "o", color=color)
    keys.append(Line2D([], [], color=color, marker="o", ls="", label=_flops(c)))
  for i, valley in enumerate(found):
    n = np.geomspace(valley.runs.n.min(), valley.runs.n.max(), 100)
    loss = np.polyval(valley.curve, np.log(n))
    axis.plot(n, loss, color=_shade(i, len(found)), linewidth=1)
    if valley.is_inside:
      axis.plot(valley.n, valley.loss, "*", color=_shade(i, len(found)), ms=13)
  if found:
    keys.append(Line2D([], [], color="0.4", lw=1, label="parabola"))
    star = dict(color="0.4", marker="*", ls="", ms=11)
    keys.append(Line2D([], [], **star, label="its lowest, among the runs"))
  axis.set(xscale="log")
  curves.mark(axis.xaxis, _short)
  _label(axis, "at equal compute", "parameters N", "loss (nats a token)")
  if len(levels) <= _MOST:
    axis.legend(handles=keys, **_SMALL)


def _best(axis, points, law, drawn) -> None:
  c = np.geomspace(points.c.min() / 2, points.c.max() * 10, 100)
  label = f"law: N ~ C^{law.exponent:.2f}"
  best = law.best(c)[0]
  axis.plot(c, best, color=curves.BLUE, label=label)
  _band(axis, c, [one.best(c)[0] for one in drawn], curves.BLUE)
  inside = [v for v in power.valleys(points) if v.is_inside]
  x, y = [v.c for v in inside], [v.n for v in inside]
  if inside:
    axis.plot(x, y, "k*", ms=10, label="lowest of an isoFLOP parabola")
  beyond = dict(
    color="0.5", alpha=0.1, linewidth=0, label="beyond what was run"
  )
  axis.axvspan(points.c.max(), c[-1], **beyond)
  axis.set(xscale="log", yscale="log", xlim=(c[0], c[-1]))
  # A band may reach sizes of nothing: what is shown lies around the runs.
  low, high = points.n.min(), points.n.max()
  least = np.clip(best.min(), low / _APART, low) / 1.5
  most = np.clip(best.max(), high, high * _APART) * 1.5
  axis.set_ylim(least, most)
  curves.mark(axis.xaxis, _power)
  curves.mark(axis.yaxis, _short)
  x, y = "compute C (FLOPs)", "best parameters N"
  _label(axis, "the best size for a compute", x, y)
  axis.legend(loc="upper left", **_SMALL)


def _residuals(axis, points, law) -> None:
  apart = 100 * (points.loss / law.loss(points.n, points.d) - 1)
  axis.axhline(0, color="0.6", linewidth=0.8)
  sizes = np.unique(points.n)
  for i, n in enumerate(sizes):
    mine = points.n == n
    shown = dict(color=_shade(i, len(sizes)), label=f"N = {_short(n)}")
    axis.plot(points.c[mine], apart[mine], "o", **shown)
  most = 1.2 * max(np.abs(apart).max(), 0.01)
  axis.set(xscale="log", ylim=(-most, most))
  curves.mark(axis.xaxis, _power)
  x, y = "compute C (FLOPs)", "loss above the law (%)"
  _label(axis, "what the law leaves over", x, y)
  if len(sizes) <= _MOST:
    axis.legend(**_SMALL)


def _power(c: float) -> str:
  return f"{c:.0e}".replace("e+", "e")


def _flops(c: float) -> str:
  return f"{c:.1e} FLOPs".replace("e+", "e").replace(".0e", "e")


def _short(n: float) -> str:
  for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if n >= unit:
      return f"{n / unit:.3g} {name}"
  return f"{n:.0f}"
