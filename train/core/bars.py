"""Plans side by side, as a picture."""

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure

from train.core import curves, planning

_G = 2.0**30


def memory(plans: Mapping[str, planning.Plan]) -> Figure:
  """What fills a device, as shares of its memory: a bar for each plan.

  Args:
    plans: by name; what is beyond 100 % does not fit.
  """
  figure = Figure(figsize=(10, 1.6 + 0.45 * len(plans)), layout="constrained")
  axis = figure.subplots()
  classes = list(dict.fromkeys(c for p in plans.values() for c in p.classes))
  colors = matplotlib.colormaps["viridis"].resampled(len(classes))
  left = [0.0] * len(plans)
  for i, name in enumerate(classes):
    shares = [
      100 * plan.classes.get(name, 0) / plan.limit_bytes
      for plan in plans.values()
    ]
    axis.barh([*plans], shares, 0.6, left, color=colors(i), label=name)
    left = [a + b for a, b in zip(left, shares, strict=True)]
  for row, plan in enumerate(plans.values()):
    told = f"{plan.peak_bytes / _G:,.1f} of {plan.limit_bytes / _G:,.1f} GiB"
    margin = axis.get_yaxis_transform()
    axis.text(1, row, told, transform=margin, ha="right", va="center")
  axis.axvline(100, color=curves.RED, linewidth=1.4)
  axis.set_xlim(0, 1.3 * max(100, *left))
  axis.invert_yaxis()  # the first plan is on top
  curves.finish(axis)
  axis.grid(False, axis="y")
  axis.set_xlabel("memory of a device (%); what crosses the line does not fit")
  figure.legend(loc="outside upper left", ncols=len(classes), frameon=False)
  return figure
