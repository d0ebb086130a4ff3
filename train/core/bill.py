"""A plan as a page for people and as a line for programs."""

import dataclasses
from typing import Any

from configs import door
from sharding import mesh as meshes
from sharding import topology as topologies
from train.core import planning

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
