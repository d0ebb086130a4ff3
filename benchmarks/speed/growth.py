"""How a step grows: with layers, with length, with devices; compiled for v5p.

    python -m benchmarks.speed.growth             needs libtpu; some ten minutes

Llama 3's page at a quarter of its width. The last line is JSON: compile seconds
by layers and their ratio; temporary bytes by length, and how far the last
doubling is from twice; argument bytes by devices times devices, over the first;
seconds until a step that does not fit is refused.
"""

import json

from absl import app

from configs import door
from sharding import topology as topologies
from train import plan
from train.core import planning

SMALL = (
  "model.d_model=1024", "model.d_ff=3584", "model.n_heads=8",
  "model.n_kv_heads=2", "model.vocab_size=32000", "train.n_micro=1",
  "objective.chunk_tokens=512",
)  # fmt: skip
LAYERS, LENGTHS = (8, 32), (4096, 8192, 16_384, 32_768)
SLICES = ("v5p:2x2x1", "v5p:2x2x4", "v5p:4x4x4")


def measure(slice_: str, *overrides: str) -> planning.Plan:
  """The plan of the small model with a few changes."""
  page = door.read("configs/llama3_8b.py")
  config = door.build(page, plan.SECTIONS, (*SMALL, *overrides))
  return planning.measure(config, topologies.parse(slice_))


def main(_: list[str]) -> None:
  """One line a compile, the JSON last."""
  seconds = {n: [] for n in LAYERS}
  for _ in range(3):  # in turns: the machine may have other things to do
    for n in LAYERS:
      found = measure(
        SLICES[0], f"model.n_layers={n}", "batch.size=4", "batch.length=2048"
      )
      seconds[n].append(round(found.compile_seconds, 1))
  seconds = {n: min(s) for n, s in seconds.items()}
  print("layers", seconds, flush=True)
  temporary = {}
  for n in LENGTHS:
    sizes = ("batch.size=4", f"batch.length={n}", f"model.max_length={n}")
    found = measure(SLICES[0], "model.n_layers=8", *sizes)
    temporary[n] = found.temporary_bytes
  print("lengths", temporary, flush=True)
  arguments = {}
  for slice_ in SLICES:
    n = topologies.parse(slice_).n_devices
    sizes = (f"batch.size={n}", "batch.length=2048")
    arguments[n] = measure(slice_, "model.n_layers=8", *sizes).argument_bytes
  print("devices", arguments, flush=True)
  # Thirty-two rows of 32k tokens on a chip, and everything saved.
  refused = measure(
    SLICES[0], "model.n_layers=32", "batch.size=128", "batch.length=32768",
    "model.max_length=32768", "model.remat=none",
  )  # fmt: skip
  assert not refused.fits
  first = min(arguments)
  result = {
    "name": "growth",
    "compile_seconds": seconds,
    "compile_ratio": round(seconds[LAYERS[1]] / seconds[LAYERS[0]], 3),
    "temporary_bytes": temporary,
    "last_doubling": round(temporary[LENGTHS[-1]] / temporary[LENGTHS[-2]], 3),
    "argument_bytes": arguments,
    "arguments_times_devices": {
      n: round(b * n / (arguments[first] * first), 3)
      for n, b in arguments.items()
    },
    "refused_after_seconds": round(refused.compile_seconds, 1),
    "refused_gib": round(refused.peak_bytes / 2**30, 1),
  }
  print(json.dumps(result))


if __name__ == "__main__":
  app.run(main)
