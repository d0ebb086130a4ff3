"""What dropless experts send over `expert` where a TPU's compiler is asked."""

import importlib.util
import json
import subprocess
import sys

import pytest

N_LAYERS, D_MODEL, N_SHARDS, N_CHOICES = 2, 256, 4, 2
N_TOKENS = 16 * 16 // 8  # of a device
# A step's passes through a layer: forward, and the gradients of both exchanges.
N_EXCHANGES = N_LAYERS * 2 * 2

PROGRAM = """
import dataclasses, json, sys
from benchmarks.parity import cells, meshes
from sharding import expert, mesh, topology
sends = json.loads(sys.argv[1])
if not sends:
  expert.Group.sends = False
tiny = cells.FAMILIES["mixtral"]
model = dataclasses.replace(
  tiny, d_model=256, experts=dataclasses.replace(tiny.experts, n_experts=8)
)
split = mesh.Config(data=1, fsdp=2, expert=4, rules="expert")
slice_ = topology.parse("v5p:2x2x2").devices()
found = meshes.program(model, split, slice_).collectives
print(json.dumps([[c.kind, c.count, c.wire_bytes] for c in found
                  if c.axes == ("expert",)]))
"""


def over_experts(*, sends):
  """Kind -> (count, bytes), in a process of its own: one platform for each."""
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, json.dumps(sends)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  rows = json.loads(done.stdout.splitlines()[-1])
  return {kind: (count, n_bytes) for kind, count, n_bytes in rows}


needs_compilers = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="no TPU compilers: make slow installs them",
)


@needs_compilers
@pytest.mark.slow
def test_on_a_slice_rows_are_sent_to_their_experts_and_no_tokens_gathered():
  """There and back, in fp32, a row once for each of its choices.

  What else is gathered over the axis is how many rows there are: a few numbers.
  """
  sent = over_experts(sends=True)
  rows = 4 * N_TOKENS * D_MODEL  # bytes of a device's own
  count, n_bytes = sent["ragged-all-to-all"]
  away = (N_SHARDS - 1) / N_SHARDS  # were the load even
  assert count == N_EXCHANGES
  assert n_bytes == count * away * N_CHOICES * rows
  assert sent.get("all-gather", (0, 0))[1] < rows / 8
  assert "reduce-scatter" not in sent


@needs_compilers
@pytest.mark.slow
def test_gathered_tokens_would_show():
  """The other form, as on CPUs: everybody's rows, and their parts added up."""
  found = over_experts(sends=False)
  everybodys = (N_SHARDS - 1) * 4 * N_TOKENS * D_MODEL
  assert "ragged-all-to-all" not in found
  for kind in ("all-gather", "reduce-scatter"):
    count, n_bytes = found[kind]
    assert count >= N_LAYERS and n_bytes >= N_LAYERS * everybodys
