"""Curves of a run, or of several in one picture."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath, epy

with epy.lazy_imports():  # half a second that most programs need not wait
  import matplotlib
  from matplotlib import figure as figures
  from matplotlib import ticker

TRAINED, HELD_OUT = "#22577a", "#d1495b"
_PANELS = (
  ("train", "loss", "loss", True),
  ("train", "grad_norm", "gradient norm", True),
  ("train", "lr", "learning rate", False),
  ("train", "tokens_per_second", "tokens a second", False),
)
Points = Sequence[tuple[int | float, int | float]]


def draw(rows: list[dict[str, Any]], path: epath.Path) -> None:
  """Four curves over the steps; held-out loss lies beside the training loss."""
  figure = figures.Figure(figsize=(10, 6.5), layout="constrained")
  axes = figure.subplots(2, 2, sharex=True)
  panels = zip(_PANELS, axes.flat, strict=True)
  for (kind, key, label, logarithmic), axis in panels:
    _line(axis, points(rows, kind, key), TRAINED, "trained on")
    if held := points(rows, "eval", f"heldout_{key}"):
      _line(axis, held, HELD_OUT, "held out", "o-")
      axis.legend(frameon=False)
    axis.set_title(label, loc="left", fontsize=11)
    _plain(axis)
    if logarithmic:
      _logarithmic(axis)
    if not logarithmic or key == "lr":
      axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(_spelt(key))
  for axis in axes[-1]:
    axis.set_xlabel("step")
  _save(figure, path)


def points(
  rows: Iterable[Mapping[str, Any]], kind: str, key: str
) -> list[tuple[int, float]]:
  """Step and value of what rows of a kind say."""
  return [(r["step"], r[key]) for r in rows if r["kind"] == kind and key in r]


def overlay(
  lines: Mapping[str, Mapping[tuple[str, str], Points]], path: epath.Path
) -> None:
  """Several runs in one picture.

  Args:
    lines: name of a run -> (what is drawn, over what) -> points; these pairs
      are the rows and the columns of the picture.
    path: of the picture.
  """
  drawn = [pair for panels in lines.values() for pair in panels]
  rows, columns = (
    list(dict.fromkeys(axis)) for axis in zip(*drawn, strict=True)
  )
  size = (1 + 3.6 * len(columns), 0.9 + 3.1 * len(rows))
  figure = figures.Figure(figsize=size, layout="constrained")
  axes = figure.subplots(
    len(rows), len(columns), sharex="col", sharey="row", squeeze=False
  )
  colors = matplotlib.colormaps["tab10" if len(lines) <= 10 else "turbo"]
  for i, (name, panels) in enumerate(lines.items()):
    color = colors(i if len(lines) <= 10 else i / (len(lines) - 1))
    for (row, column), found in panels.items():
      axis = axes[rows.index(row), columns.index(column)]
      _line(axis, found, color, name, "o-" if len(found) < 30 else "-")
  for (i, j), axis in np.ndenumerate(axes):
    _plain(axis)
    _logarithmic(axis)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
    if not j:
      axis.set_ylabel(f"{rows[i]}, per target")
    if i == len(rows) - 1:
      axis.set_xlabel(columns[j])
  handles, names = axes[-1, 0].get_legend_handles_labels()
  figure.legend(
    handles, names, loc="outside upper left", ncols=4, frameon=False
  )
  _save(figure, path)


def _line(
  axis: Any, found: Points, color: Any, label: str, how: str = "-"
) -> None:
  options = dict(color=color, linewidth=1.4, markersize=4, label=label)
  axis.plot(*zip(*found, strict=True), how, **options)


def _plain(axis: Any) -> None:
  axis.spines[["top", "right"]].set_visible(False)
  axis.grid(alpha=0.25)


def _logarithmic(axis: Any) -> None:
  axis.set_yscale("log")
  axis.yaxis.set_major_formatter(ticker.ScalarFormatter())
  axis.yaxis.set_minor_formatter(ticker.ScalarFormatter())
  axis.grid(alpha=0.25, which="both")


def _spelt(key: str) -> Any:
  if key == "tokens_per_second":
    return ticker.StrMethodFormatter("{x:,.0f}")
  return ticker.ScalarFormatter()


def _save(figure: Any, path: epath.Path) -> None:
  with path.open("wb") as file:
    figure.savefig(file, dpi=120, format="png")
