"""Tokens per second of a training step on a GPU, against plain PyTorch.

    python -m benchmarks.speed.train_gpu

Llamas in bf16 that fit one card of 80 GB beside torch's: see
benchmarks/speed/beside_torch.py; torch runs eager and compiled. Its rows are
one document each, which it is told, and we find out. The last line is JSON.
"""

import dataclasses
import gc
import json
import os

# Half of the memory is torch's.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import torch  # noqa: E402

from benchmarks.speed import beside_torch  # noqa: E402
from models import llama  # noqa: E402


def _preset(name: str, **changes) -> llama.Config:
  return dataclasses.replace(llama.PRESETS[name], **changes)


BOTH = "autocast", "compiled"
CASES = {
  # As compiled torch does it: layers one by one, nothing computed again.
  "110m": (_preset("110m", scanned=False), 32, 1024, BOTH),
  "110m scanned": (_preset("110m"), 32, 1024, BOTH),
  "1b": (_preset("llama3_2_1b", remat="minimal"), 2, 2048, BOTH[1:]),
}


def main() -> None:
  """Measures all cases."""
  device = jax.devices()[0]
  if device.platform != "gpu":
    raise SystemExit(
      f"train_gpu wants a GPU, and jax found a {device.platform}."
    )
  result = {"name": "train_gpu", "device": device.device_kind}
  for name, (model, rows, length, peers) in CASES.items():
    case = beside_torch.Case(
      model=model,
      rows=rows,
      length=length,
      device="cuda",
      peers=peers,
    )
    found = beside_torch.measure(case)
    gc.collect()  # the next case needs the room
    torch.cuda.empty_cache()
    print(name, "  ".join(f"{key} {value}" for key, value in found.items()))
    result[name] = found
  print(json.dumps(result))


if __name__ == "__main__":
  main()
