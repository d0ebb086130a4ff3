"""What travels in a step: S6. On eight CPU devices: test_meshes.py."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from benchmarks.parity import cells, collectives, meshes
from sharding import hlo, mesh

LLAMA = cells.FAMILIES["llama"]
ON = {
  "dp": mesh.Config(data=8, rules="dp"),
  "fsdp": mesh.Config(data=1, fsdp=8, rules="fsdp"),
  "expert": mesh.Config(data=1, fsdp=2, expert=4, rules="expert"),
}


def gathered(program: hlo.Program) -> float:
  """Bytes that a device receives of all-gathers."""
  found = [c for c in program.collectives if c.kind == "all-gather"]
  return sum(c.wire_bytes for c in found)


@pytest.mark.parametrize(
  "table",
  [
    pytest.param("dp", marks=pytest.mark.slow),
    "fsdp",
    pytest.param("expert", marks=pytest.mark.slow),
  ],
)
def test_of_the_tables_only_the_head_is_gathered_and_its_gradient_added_once(
  table,
):
  """Whatever the chunks; not the embedding, nor what the optimizer keeps.

  Twice the vocabulary is one more head on the wire where weights are split, else
  nothing. With experts a device looks words up in a quarter of the table's
  columns, of which the other half is sent to it: an eighth of the table.
  """
  plain = meshes.program(LLAMA, ON[table])
  parts = meshes.program(LLAMA, ON[table], chunk_tokens=2)
  assert collectives.rows(plain) == collectives.rows(parts)
  wide = dataclasses.replace(LLAMA, vocab_size=2 * cells.VOCAB)
  more = gathered(meshes.program(wide, ON[table])) - gathered(plain)
  head = 4 * cells.VOCAB * LLAMA.d_model
  share = {"dp": 0, "fsdp": 7 / 8, "expert": 7 / 8 + 1 / 8}
  assert more == share[table] * head


def test_the_file_is_as_the_script_writes_it():
  stored = collectives.stored()
  assert collectives.text(stored) == collectives.STORED.read_text()
  assert set(stored) <= {"cpu", *collectives.SLICES}
  for programs in stored.values():
    assert programs and set(programs) <= {cell.name for cell in cells.few()}


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="no TPU compilers: make slow installs them",
)
@pytest.mark.parametrize("where", sorted({*collectives.stored()} - {"cpu"}))
def test_on_a_slice_travels_what_was_committed(where):
  """In a process of its own: the compilers take one platform alone."""
  command = [sys.executable, "-m", "benchmarks.parity.collectives", "--check"]
  done = subprocess.run(
    [*command, f"--on={where}"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  assert json.loads(done.stdout.splitlines()[-1])["on"] == [where]
