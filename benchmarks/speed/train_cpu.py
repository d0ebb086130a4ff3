"""Tokens per second of a training step on a CPU, against plain PyTorch.

    python -m benchmarks.speed.train_cpu

Preset "15m", batch 8 x 256, in both types: see benchmarks/speed/beside_torch.py.
The last line is JSON.
"""

import dataclasses
import json
import os

from benchmarks.speed import beside_torch
from models import llama

PEERS = {"float32": ("cast",), "bfloat16": ("cast", "autocast")}


def main() -> None:
  """Measures both types, with the load of the machine at the start."""
  result = {"name": "train_cpu", "load": round(os.getloadavg()[0], 2)}
  for dtype, peers in PEERS.items():
    model = dataclasses.replace(llama.PRESETS["15m"], dtype=dtype)
    case = beside_torch.Case(
      model=model, rows=8, length=256, device="cpu", peers=peers
    )
    found = beside_torch.measure(case)
    print(dtype, "  ".join(f"{name} {value}" for name, value in found.items()))
    result[dtype] = found
  print(json.dumps(result))


if __name__ == "__main__":
  main()
