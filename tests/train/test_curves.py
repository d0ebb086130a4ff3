"""Pictures tell what the logs say, with ticks that can be read."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from research.scaling import law, plots, points
from train.core import bars, curves, planning


def rows(losses, norms):
  """Of a run that logs every ten steps and evaluates in the end."""
  steps = 10 * np.arange(1, 1 + len(losses))
  found = [
    dict(step=int(step), kind="train", loss=loss, grad_norm=norm)
    | dict(lr=1e-3 / step, tokens_per_second=12345.0)
    for step, loss, norm in zip(steps, losses, norms, strict=True)
  ]
  last = dict(step=int(steps[-1]), kind="eval", heldout_loss=losses[-1] + 0.1)
  return [*found, last]


def assert_legible(figure):
  """Every axis has some numbers, and no two of them touch."""
  FigureCanvasAgg(figure).draw()
  for axes in figure.axes:
    for axis, least in ((axes.xaxis, 2), (axes.yaxis, 2)):
      low, high = sorted(axis.get_view_interval())
      boxes = [
        tick.label1.get_window_extent()
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if tick.label1.get_visible()
        and tick.label1.get_text()
        and low <= tick.get_loc() <= high
      ]
      shared = axis is axes.xaxis and not boxes  # told by the panel below
      assert shared or len(boxes) >= least, axes.get_title("left")
      for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other), axes.get_title("left")


@pytest.mark.parametrize("low", [8e-4, 0.5, 3.0, 3.3])
def test_curves_are_the_rows_and_ticks_are_legible(low):
  made = rows(np.geomspace(3.4, low, 30), np.geomspace(1e3 * low, 2.0, 30))
  figure = curves.figure(made, "runs/x")
  loss, norm, rate, speed = figure.axes
  train, held = loss.lines
  assert [*train.get_ydata()] == [r["loss"] for r in made[:-1]]
  assert [*train.get_xdata()] == [r["step"] for r in made[:-1]]
  assert [*held.get_ydata()] == [made[-1]["heldout_loss"]]
  assert [*norm.lines[0].get_ydata()] == [r["grad_norm"] for r in made[:-1]]
  assert len(speed.lines[0].get_ydata()) == 29  # the first step compiles
  assert_legible(figure)


def test_a_run_of_one_step_is_drawn():
  assert_legible(curves.figure(rows([3.0], [1.0])))


@pytest.mark.parametrize("span", [1.5, 10, 100, 1e4])
def test_a_law_is_drawn_legibly(span):
  planted = law.Law(1.69, 406.4, 410.7, 0.34, 0.28)
  n = np.tile(3e8 * np.geomspace(1, span, 4), 3)
  d = np.repeat(2e9 * np.geomspace(1, span, 3), 4)
  found = points.of(n, d, planted.loss(n, d))
  wild = law.Law(1.7, 1e-30, 410.0, 0.01, 3.0)  # its best sizes are nothing
  drawn = [planted, law.Law(1.7, 400.0, 410.0, 0.34, 0.28), wild]
  figure = plots.figure(found, planted, drawn)
  assert_legible(figure)
  shown = np.concatenate(
    [x.get_ydata() for x in figure.axes[0].lines if x.get_marker() == "o"]
  )
  assert sorted(shown) == pytest.approx(sorted(found.loss))


def test_memory_is_told_in_shares_of_a_device():
  classes = {"parameters": 3.0, "activations": 1.0}
  others = dict(argument_bytes=1.0, host_bytes=0.0, model_flops=1.0, seconds={})
  unknown = "kernel_flops program step_seconds mfu bound compile_seconds"
  others |= dict.fromkeys(unknown.split())
  plans = {
    name: planning.Plan(
      **others, peak_bytes=4.0, limit_bytes=limit, classes=classes
    )
    for name, limit in {"fits": 16.0, "does not": 2.0}.items()
  }
  figure = bars.memory(plans)
  (axes,) = figure.axes
  ends = [bar.get_x() + bar.get_width() for bar in axes.patches[2:]]
  assert ends == [25.0, 200.0]
  assert [x.get_text() for x in axes.get_yticklabels()] == [*plans]
  assert "GiB" in axes.texts[0].get_text()
