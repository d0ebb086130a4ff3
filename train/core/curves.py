"""The curves of a run as a figure; no window system is asked for."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
  FuncFormatter,
  LogLocator,
  MaxNLocator,
  NullFormatter,
  NullLocator,
)

BLUE, RED = "#22577a", "#d1495b"
_FEW = 12  # points of a line
_STEPS = (1, 2, 2.5, 5, 10)  # between even ticks, times powers of ten
# A logarithmic axis whose ends are at most so many times apart has ticks at
# these multiples of the powers of ten; () are even ones.
_TICKS = ((9, ()), (50, (1, 2, 5)), (3000, (1, 3)), (float("inf"), (1,)))


def figure(rows: Sequence[dict[str, Any]], title: str = "") -> Figure:
  """Loss, gradient, learning rate and speed over the steps of a run.

  Args:
    rows: of metrics.jsonl.
    title: of the whole.
  """
  drawn = Figure(figsize=(10, 6.5), layout="constrained")
  ((loss, gradient), (rate, speed)) = drawn.subplots(2, 2, sharex=True)
  train = _series(rows, "train", "loss")
  loss.plot(*train, **_line(train), label="training")
  held = _series(rows, "eval", "heldout_loss")
  if held[0]:
    loss.plot(*held, "o-", color=RED, ms=5, label="held out")
    loss.legend(frameon=False)
  loss.set_yscale("log")
  norm = _series(rows, "train", "grad_norm")
  gradient.plot(*norm, **_line(norm))
  gradient.set_yscale("log")
  rates = _series(rows, "train", "lr")
  rate.plot(*rates, **_line(rates))
  rate.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
  rate.set_ylim(bottom=0)
  x, y = _series(rows, "train", "tokens_per_second")
  x, y = (x[1:], y[1:]) if len(x) > 1 else (x, y)  # the first one compiled
  speed.plot(x, y, **_line((x, y)))
  speed.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
  for axis in (loss, gradient):
    mark(axis.yaxis)
  speed.set_ylim(0, 1.15 * max(y, default=1))
  names = {
    loss: "loss (nats a token)",
    gradient: "gradient norm, before it is clipped",
    rate: "learning rate",
    speed: "speed (tokens a second)",
  }
  for axis, name in names.items():
    axis.set_title(name, loc="left", fontsize=11)
    finish(axis)
  for axis in (rate, speed):
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=_STEPS))
  drawn.suptitle(title, x=0.01, ha="left", fontsize=12)
  return drawn


def finish(axis: Axes) -> None:
  """A light grid, no frame above or at the right."""
  axis.grid(alpha=0.25, linewidth=0.6)
  axis.spines[["top", "right"]].set_visible(False)


def mark(axis: Axis, told: Callable[[float], str] = "{:g}".format) -> None:
  """Ticks of a logarithmic axis, few enough to be read, in plain numbers.

  Args:
    axis: with all that is drawn.
    told: a number for people.
  """
  low, high = axis.get_view_interval()
  ticks = next(ticks for most, ticks in _TICKS if high <= most * low)
  axis.set_major_locator(
    LogLocator(subs=ticks) if ticks else MaxNLocator(7, steps=_STEPS)
  )
  axis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))
  axis.set_minor_formatter(NullFormatter())
  if not ticks:
    axis.set_minor_locator(NullLocator())


def _series(
  rows: Sequence[dict[str, Any]], kind: str, key: str
) -> tuple[list[int], list[float]]:
  found = [(r["step"], r[key]) for r in rows if r["kind"] == kind and key in r]
  return [step for step, _ in found], [value for _, value in found]


def _line(series: tuple[list[int], list[float]]) -> dict[str, Any]:
  """Few points are shown each: a line of one is none."""
  marker = "." if len(series[0]) < _FEW else ""
  return dict(color=BLUE, linewidth=1.4, marker=marker)
