"""Makes tests/golden/collectives.json: what travels in a step, on every mesh.

    python -m benchmarks.parity.collectives                     writes it
    python -m benchmarks.parity.collectives --check             compares with it
    python -m benchmarks.parity.collectives --check --on=v5e:2x4
Of a few cells (benchmarks/parity/cells.py), compiled for eight virtual CPU
devices and for TPU slices that are not here (libtpu: make slow installs it):
kind, mesh axes, count, and the bytes that one device receives. A collective
that is new, or gone, shows; `git diff` of the file says which.
"""

import json
import pathlib
import re
import sys

import jax
from absl import app, flags

from benchmarks.parity import cells, meshes
from sharding import hlo, topology

STORED = pathlib.Path("tests/golden/collectives.json")
SLICES = ("v5e:2x4", "v5p:2x2x2", "v6e:2x4")
Rows = list[list]  # kind, axes, count, bytes

_CHECK = flags.DEFINE_bool("check", False, "compares, and writes nothing")
_ON = flags.DEFINE_list("on", ["cpu", *SLICES], "cpu, and names of slices")


def rows(program: hlo.Program) -> Rows:
  """The collectives of a program, as JSON has them."""
  found = [
    [c.kind, " x ".join(c.axes), c.count, round(c.wire_bytes)]
    for c in program.collectives
    if c.wire_bytes  # some are of a device with itself
  ]
  return sorted(found)


def made(where: str) -> dict[str, Rows]:
  """Of every cell; `where` is cpu or the name of a slice."""
  devices = jax.devices()
  if where != "cpu":
    devices = topology.parse(where).devices()
  return {
    c.name: rows(meshes.program(c.model, c.mesh, devices, n_micro=c.n_micro))
    for c in cells.few()
  }


def stored() -> dict[str, dict[str, Rows]]:
  """What is committed."""
  return json.loads(STORED.read_text())


def text(programs: dict[str, dict[str, Rows]]) -> str:
  """JSON, a line for each collective."""
  spread = json.dumps(programs, indent=1, sort_keys=True)
  joined = re.sub(r"\[\n\s+(\"[^\[\]]*?)\n\s+\]", _in_a_line, spread)
  return joined + "\n"


def _in_a_line(found: re.Match) -> str:
  return "[" + re.sub(r"\n\s*", " ", found.group(1)) + "]"


def main(argv: list[str]) -> None:
  """Writes or checks; exits with 1 where something differs."""
  del argv
  meshes.prepare()
  kept = stored() if STORED.exists() else {}
  found = {where: made(where) for where in _ON.value}
  differ = [
    f"{where}: {name}"
    for where, programs in found.items()
    for name in {*programs, *kept.get(where, {})}
    if programs.get(name) != kept.get(where, {}).get(name)
  ]
  if not _CHECK.value:
    STORED.write_text(text(kept | found))
  print(json.dumps({"on": [*found], "differ": sorted(differ)}))
  sys.exit(_CHECK.value and bool(differ))


if __name__ == "__main__":
  app.run(main)
