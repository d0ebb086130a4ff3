"""Steps compiled for TPU slices that are not here, beside MaxText's.

    python -m benchmarks.speed.aot            needs libtpu; some ten minutes
    python -m benchmarks.speed.aot --rows=7b_v5e_16,8b_v5p_8

The peer is MaxText 0.2.5, compiled by the same compiler for the same model,
slice, batch, length and remat policy (bf16 compute, fp32 weights and AdamW, scan,
splash); its figures stand below. FLOPs are of matrix products, without kernels.

The last line is JSON: rows (case, peak_gib, hlo_tflop, mcycles, wire_gb, the
ratios to the peer's, over_weights: FLOPs over six times the weights times the
tokens), and worst, the largest ratio of each kind over all rows.
"""

import dataclasses
import json

from absl import app, flags

from configs import door
from models import flops
from sharding import topology as topologies
from train import plan
from train.core import planning

_ROWS = flags.DEFINE_list("rows", [], "names of rows; none: all")
_G = 2.0**30


@dataclasses.dataclass(frozen=True)
class Row:
  """A case and what MaxText takes of a device; None: not known."""

  page: str
  topology: str
  overrides: tuple[str, ...]
  peak_gib: float
  hlo_tflop: float | None
  mcycles: float | None
  wire_gb: float


def _dense(page: str, slice_: str, n: int, batch: str, remat: str, *peer):
  size, length = (int(x) for x in batch.split("x"))
  return Row(
    f"configs/{page}.py",
    slice_,
    (
      "mesh.data=1", f"mesh.fsdp={n}", "mesh.rules=fsdp", "train.n_micro=1",
      f"batch.size={size * n}", f"batch.length={length}",
      f"model.remat={remat}",
      # Some 4,096 tokens at once at the head, which the pages leave at 256 a row.
      f"objective.chunk_tokens={min(2048, 4096 // size)}",
    ),
    *peer,
  )  # fmt: skip


ROWS = {
  "7b_v5e_16": _dense(
    "llama2_7b", "v5e:4x4", 16, "1x2048", "full", 8.12, 101.8, 1546, 40.6
  ),
  "7b_v5e_256": _dense(
    "llama2_7b", "v5e:16x16", 256, "4x2048", "full", 4.11, 411.5, 4719, 53.2
  ),
  "7b_v5e_256_qkv": _dense(
    "llama2_7b", "v5e:16x16", 256, "4x2048", "save_qkv",
    10.03, 385.1, 4174, 53.2,
  ),
  "7b_v5p_4": _dense(
    "llama2_7b", "v5p:2x2x1", 4, "4x4096", "full", 35.00, 823.0, 4684, 40.0
  ),
  "7b_v5p_4_minimal": _dense(
    "llama2_7b", "v5p:2x2x1", 4, "4x4096", "minimal",
    71.86, 658.1, 4284, 40.0,
  ),
  "8b_v5p_8": _dense(
    "llama3_8b", "v5p:2x2x2", 8, "2x8192", "full", 26.03, 904.9, 5587, 46.9
  ),
  "8x7b_v5p_32": Row(
    "configs/mixtral_8x7b.py", "v5p:2x4x4",
    ("mesh.data=1", "mesh.fsdp=4", "mesh.expert=8", "batch.size=256",
     "batch.length=4096", "model.remat=full"),
    46.52, None, None, 245,
  ),
}  # fmt: skip


def measure(row: Row) -> dict[str, float | None]:
  """Compiles one row; its figures and their ratios to the peer's."""
  page = door.read(row.page)
  config = door.build(page, plan.SECTIONS, row.overrides)
  topology = topologies.parse(row.topology)
  found = planning.measure(config, topology)
  n_tokens = config.batch.size * config.batch.length / topology.n_devices
  products = found.program.flops
  ours = {
    "peak_gib": found.peak_bytes / _G,
    "hlo_tflop": products / 1e12,
    "mcycles": found.program.cycles / 1e6,
    "wire_gb": sum(c.wire_bytes for c in found.program.collectives) / 1e9,
  }
  weights = 6 * flops.n_matmul_params(config.model) * n_tokens
  return {
    **{name: round(value, 2) for name, value in ours.items()},
    **{
      f"{name}_ratio": round(value / peer, 3)
      for name, value in ours.items()
      if (peer := getattr(row, name)) is not None
    },
    "over_weights": round(products / weights, 3),
    "compile_seconds": round(found.compile_seconds, 1),
  }


def main(_: list[str]) -> None:
  """Prints a line for each row, the JSON last."""
  rows = []
  for name in _ROWS.value or ROWS:
    rows.append({"case": name, **measure(ROWS[name])})
    print(rows[-1], flush=True)
  kinds = {key for row in rows for key in row if key.endswith("_ratio")}
  worst = {key: max(r[key] for r in rows if key in r) for key in sorted(kinds)}
  print(json.dumps({"rows": rows, "worst": worst}))


if __name__ == "__main__":
  app.run(main)
