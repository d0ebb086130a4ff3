"""Pictures of a fit: what was run, what the law says, and how sure it is."""

import matplotlib

matplotlib.use("Agg")
import numpy as np
from etils import epath
from matplotlib import pyplot as plt

from research.scaling import law as laws
from research.scaling import power
from research.scaling.points import Points

_COLORS = plt.get_cmap("viridis")
_BAND = dict(alpha=0.2, linewidth=0)
SHARE = 0.9  # of the draws, within a band


def write(
  path: epath.Path, points: Points, law: laws.Law, drawn: list[laws.Law]
) -> None:
  """Four panels: loss over D, over N at equal compute, N over C, and residuals."""
  figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
  _curves(axes[0, 0], points, law, drawn)
  _valleys(axes[0, 1], points, law)
  _best(axes[1, 0], points, law, drawn)
  _residuals(axes[1, 1], points, law)
  for axis in axes.flat:
    axis.grid(alpha=0.25, which="both", linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
  figure.suptitle(
    f"L = {law.E:.3f} + {law.A:.3g} / N^{law.alpha:.3f} + "
    f"{law.B:.3g} / D^{law.beta:.3f}, {len(points)} runs"
  )
  with path.open("wb") as file:
    figure.savefig(file, dpi=130, format="png")
  plt.close(figure)


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
  axis.set(xscale="log", yscale="log", xlabel="tokens D")
  axis.set(ylabel="loss (nats a token)", title="every run, and the law")
  if len(sizes) <= 10:
    axis.legend(frameon=False, fontsize=8)


def _valleys(axis, points, law) -> None:
  found = power.valleys(points)
  levels = [v.runs for v in found] or power.levels(points)
  for i, level in enumerate(levels):
    color = _shade(i, len(levels))
    n = np.geomspace(level.n.min() / 1.3, level.n.max() * 1.3, 100)
    c = np.exp(np.log(level.c).mean())
    axis.plot(n, law.loss(n, c / 6 / n), "--", color=color, linewidth=1)
    axis.plot(level.n, level.loss, "o", color=color, label=f"{c:.1e} FLOPs")
  for i, valley in enumerate(found):
    if valley.is_inside:
      axis.plot(valley.n, valley.loss, "*", color=_shade(i, len(found)), ms=13)
  axis.set(xscale="log", xlabel="parameters N", ylabel="loss (nats a token)")
  axis.set(title="at equal compute: runs, law (dashed), parabola's best (star)")
  if len(levels) <= 10:
    axis.legend(frameon=False, fontsize=8)


def _best(axis, points, law, drawn) -> None:
  c = np.geomspace(points.c.min() / 2, points.c.max() * 10, 100)
  axis.plot(c, law.best(c)[0], color="C0", label=f"law: C^{law.exponent:.2f}")
  _band(axis, c, [one.best(c)[0] for one in drawn], "C0")
  inside = [v for v in power.valleys(points) if v.is_inside]
  x, y = [v.c for v in inside], [v.n for v in inside]
  axis.plot(x, y, "k*", ms=10, label="lowest of an isoFLOP parabola")
  axis.axvspan(points.c.max(), c[-1], color="0.5", alpha=0.08, linewidth=0)
  axis.set(xscale="log", yscale="log", xlabel="compute C (FLOPs)")
  axis.set(ylabel="best parameters N", title="grey: beyond what was run")
  axis.legend(frameon=False, fontsize=8)


def _residuals(axis, points, law) -> None:
  apart = 100 * (points.loss / law.loss(points.n, points.d) - 1)
  axis.axhline(0, color="0.6", linewidth=0.8)
  seen = axis.scatter(points.c, apart, c=np.log10(points.n), cmap="viridis")
  axis.figure.colorbar(seen, ax=axis, label="log10 N")
  axis.set(xscale="log", xlabel="compute C (FLOPs)")
  axis.set(ylabel="run above the law (%)", title="what the law leaves over")


def _short(n: float) -> str:
  for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if n >= unit:
      return f"{n / unit:.3g} {name}"
  return f"{n:.0f}"
