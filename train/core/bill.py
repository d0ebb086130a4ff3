"""A plan as a page for people, a line for programs, and a picture of several."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from configs import door
from sharding import mesh as meshes
from sharding import topology as topologies
from train.core import curves, planning

_G = 2.0**30


def page(
  config: door.Config, topology: topologies.Topology, plan: planning.Plan
) -> str:
  """What a person reads."""
  mesh = meshes.abstract(config.mesh, topology.n_devices)
  told = (
    "estimated"
    if plan.compile_seconds is None
    else (f"compiled in {plan.compile_seconds:.0f} s")
  )
  rows = [
    f"{topology.name}: {topology.n_devices} devices, {meshes.describe(mesh)}, "
    f"{config.batch.size:,} x {config.batch.length:,} tokens in "
    f"{config.train.n_micro} parts, remat {config.model.remat}; {told}",
    "",
  ]
  for name, n_bytes in plan.classes.items():
    rows.append(f"  {name:<12} {n_bytes / _G:9.2f} GiB")
  verdict = "fits" if plan.fits else "DOES NOT FIT"
  rows.append(
    f"  {'peak':<12} {plan.peak_bytes / _G:9.2f} GiB of "
    f"{plan.limit_bytes / _G:.2f}: {verdict}"
  )
  if plan.host_bytes:
    rows.append(f"  {'host':<12} {plan.host_bytes / _G:9.2f} GiB")
  rows += ["", f"  model        {plan.model_flops / 1e12:9.1f} TFLOP"]
  if plan.hardware_flops:
    rows.append(f"  hardware     {plan.hardware_flops / 1e12:9.1f} TFLOP")
  for c in plan.program.collectives if plan.program else ():
    rows.append(
      f"  {c.kind:<18} over {' x '.join(c.axes) or '-':<16} "
      f"{c.count:>6} times {c.wire_bytes / 1e9:9.2f} GB"
    )
  for name, seconds in plan.seconds.items():
    rows.append(f"  {name:<16} {seconds:9.3f} s")
  if plan.step_seconds:
    rows.append(
      f"  step {plan.step_seconds:.3f} s, bound by {plan.bound}; "
      f"MFU {plan.mfu:.1%}"
    )
  return "\n".join(rows)


def line(plan: planning.Plan) -> dict[str, Any]:
  """What a program reads."""
  told = dataclasses.asdict(plan)
  program = told.pop("program") or {"collectives": None}
  return {
    "fits": plan.fits,
    **told,
    "temporary_bytes": plan.temporary_bytes,
    "hardware_flops": plan.hardware_flops,
    "collectives": program["collectives"],
  }


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
