"""Tells what a run takes of a TPU slice, before one is rented.

    python -m train.plan --config=configs/llama3_8b.py --topology=v5p:4x8x8

Compiles the step that `train.pretrain` would run, with the TPU's own compiler,
which needs no TPU: bytes by class, FLOPs, what travels, seconds and MFU. The
last line is JSON. Exits with 1 where the step does not fit, and names a setting
with which it would.

`--fast` estimates the bytes and compiles nothing. `--search` estimates meshes,
remat policies and micro-batches, and ranks those that fit.
"""

import json

import jax
from absl import flags
from etils import epath

from configs import door
from sharding import topology as topologies
from train import pretrain
from train.core import bill, conflicts, planning, search

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


def main(config: door.Config, workdir: epath.Path | None) -> int:
  """Prints the page, then the line; 1 where the step does not fit."""
  del workdir
  jax.config.update("jax_platforms", "cpu")  # no accelerator is touched
  topology = topologies.parse(_TOPOLOGY.value)
  if _SEARCH.value:
    return _ranked(config, topology)
  conflicts.check(config, topology.n_devices)
  if _FAST.value:
    plan = planning.estimate(config, topology)
  else:
    plan = planning.measure(config, topology)
  print(bill.page(config, topology, plan))
  if not plan.fits:
    print(search.way_out(config, topology))
  print(json.dumps(bill.line(plan)))
  return 0 if plan.fits else 1


def estimated(page: str, topology: str) -> planning.Plan:
  """What --fast tells of a page and a topology."""
  config = door.build(door.read(page), SECTIONS)
  found = topologies.parse(topology)
  conflicts.check(config, found.n_devices)
  return planning.estimate(config, found)


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
