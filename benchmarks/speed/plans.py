"""The large pages on every kind of TPU, and GPT-2: writes PLANS.md beside this.

    python -m benchmarks.speed.plans              needs libtpu; about an hour
    python -m benchmarks.speed.plans --only=mixtral_8x7b

Each step is compiled for its slice and estimated without compiling; what does
not fit is told with its bytes. The last line is JSON: rows, and worst, how far
an estimate lies from the compiler's peak.
"""

import json
import pathlib
import time

from absl import app, flags

from configs import door
from sharding import topology as topologies
from train import plan
from train.core import planning

_ONLY = flags.DEFINE_string("only", "", "pages or slices whose name holds it")
_G = 2.0**30
PAGE = pathlib.Path(__file__).with_name("PLANS.md")
ROWS = PAGE.with_suffix(".jsonl")
SLICES = {
  "llama3_8b": ("v5e:16x16", "v5p:4x8x8", "v6e:16x16", "tpu7x:4x4x8"),
  "llama3_70b": ("v5e:16x16", "v5p:8x8x8", "v6e:16x16", "tpu7x:4x4x8"),
  "mixtral_8x7b": ("v5e:16x16", "v5p:4x8x8", "v6e:16x16", "tpu7x:4x4x8"),
  "deepseek_v3": ("v5e:16x16", "v5p:8x8x16", "v6e:16x16", "tpu7x:8x8x8"),
  "gpt2_124m": ("v5e:2x4",),
}
HEAD = """# Plans

Made by `python -m benchmarks.speed.plans`: the step of a page, compiled by the
TPU's compiler for a slice that is not here. Seconds and MFU are a model
(train/core/planning.py), not measurements. Bytes are of one device.

| page | slice | devices | peak GiB | of | fits | estimate | step s | bound | MFU |
|---|---|---|---|---|---|---|---|---|---|
"""


def _config(name: str, slice_: str) -> door.Config:
  chip = slice_.partition(":")[0]
  of_chip = f":chip={chip}" if len(SLICES[name]) > 1 else ""
  return door.build(door.read(f"configs/{name}.py{of_chip}"), plan.SECTIONS)


def estimated(row: dict) -> dict:
  """The row with its estimate, made anew, beside the compiler's peak."""
  config = _config(row["page"], row["slice"])
  topology = topologies.parse(row["slice"])
  began = time.perf_counter()
  peak = planning.estimate(config, topology).peak_bytes / _G
  return {
    **row,
    "estimate_gib": round(peak, 2),
    "estimate_ratio": round(peak / row["peak_gib"], 3),
    "estimate_seconds": round(time.perf_counter() - began, 2),
  }


def measure(name: str, slice_: str) -> dict:
  """Compiles one page for one slice."""
  config, topology = _config(name, slice_), topologies.parse(slice_)
  found = planning.measure(config, topology)
  return {
    "page": name,
    "slice": slice_,
    "devices": topology.n_devices,
    "peak_gib": round(found.peak_bytes / _G, 2),
    "limit_gib": found.limit_bytes / _G,
    "fits": found.fits,
    "compile_seconds": round(found.compile_seconds),
    "step_seconds": found.step_seconds and round(found.step_seconds, 2),
    "bound": found.bound,
    "mfu": found.mfu and round(found.mfu, 3),
  }


def table(rows: list[dict]) -> str:
  """The page."""
  lines = [
    f"| {r['page']} | {r['slice']} | {r['devices']} | {r['peak_gib']} "
    f"| {r['limit_gib']:.2f} | {'yes' if r['fits'] else 'no'} "
    f"| {r['estimate_ratio']:.3f} | {r['step_seconds'] or '-'} "
    f"| {r['bound'] or '-'} | {r['mfu'] or '-'} |\n"
    for r in rows
  ]
  return HEAD + "".join(lines)


def main(_: list[str]) -> None:
  """Plans what is asked for and writes all that is known."""
  kept = ROWS.read_text().splitlines() if ROWS.exists() else []
  rows = {(r["page"], r["slice"]): r for r in map(json.loads, kept)}
  for name, slices in SLICES.items():
    for slice_ in slices:
      if _ONLY.value in f"{name} {slice_}":
        rows[name, slice_] = measure(name, slice_)
        print(json.dumps(rows[name, slice_]), flush=True)
        ROWS.write_text("".join(json.dumps(r) + "\n" for r in rows.values()))
  rows = {key: estimated(row) for key, row in rows.items()}
  ROWS.write_text("".join(json.dumps(r) + "\n" for r in rows.values()))
  PAGE.write_text(table(list(rows.values())))
  far = max(abs(r["estimate_ratio"] - 1) for r in rows.values())
  print(json.dumps({"rows": list(rows.values()), "worst": round(far, 3)}))


if __name__ == "__main__":
  app.run(main)
