"""Tells what a run takes of a TPU slice, before one is rented.

    python -m train.plan --config=configs/llama3_8b.py --topology=v5p:4x8x8

Compiles the step that `train.pretrain` would run, with the TPU's own compiler,
which needs no TPU: bytes by class, FLOPs, what travels, seconds and MFU. The
last line is JSON. Exits with 1 where the step does not fit, and says what would
make it fit.

`--fast` estimates the bytes and compiles nothing. `--search` estimates meshes,
remat policies and micro-batches, and ranks those that fit.
"""

import dataclasses
import json

import jax
from absl import flags
from etils import epath

from configs import door
from sharding import mesh as meshes
from sharding import topology as topologies
from train import pretrain
from train.core import conflicts, planning, search
from train.objectives import lm

_TOPOLOGY = flags.DEFINE_string(
  "topology", "", "KIND:SHAPE, as v5p:2x2x4; N*KIND:SHAPE for N slices"
)
_FAST = flags.DEFINE_bool("fast", False, "estimate; compile nothing")
_SEARCH = flags.DEFINE_bool("search", False, "rank what fits, by estimates")
SECTIONS = {
  name: pretrain.SECTIONS[name]
  for name in (
    "model", "batch", "objective", "optim", "schedule", "mesh", "train",
    "guard",
  )
}  # fmt: skip
_G = 2.0**30


def main(config: door.Config, workdir: epath.Path | None) -> int:
  """Prints the page, then the line; 1 where the step does not fit."""
  del workdir
  jax.config.update("jax_platforms", "cpu")  # no accelerator is touched
  topology = topologies.parse(_TOPOLOGY.value)
  if _SEARCH.value:
    return _ranked(config, topology)
  conflicts.check(config, topology.n_devices)
  objective = lm.make(config.objective, config.model)
  make = planning.estimate if _FAST.value else planning.measure
  plan = make(config, topology, objective)
  print(page(config, topology, plan))
  if not plan.fits:
    print(search.way_out(config, topology))
  print(json.dumps(line(plan)))
  return 0 if plan.fits else 1


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


def line(plan: planning.Plan) -> dict:
  """What a program reads."""
  told = dataclasses.asdict(plan)
  program = told.pop("program") or {"collectives": None}
  return {
    "fits": plan.fits,
    **told,
    "hardware_flops": plan.hardware_flops,
    "collectives": program["collectives"],
  }


def _ranked(config: door.Config, topology: topologies.Topology) -> int:
  found = search.search(config, topology)
  for row in found[:10]:
    print(row)
  if not found:
    print(f"nothing that was tried fits {topology.name}")
  print(json.dumps({"fits": bool(found), "found": [r.asdict() for r in found]}))
  return 0 if found else 1


if __name__ == "__main__":
  door.run(main, SECTIONS, needs_workdir=False)
