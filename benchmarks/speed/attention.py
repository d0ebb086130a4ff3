"""Attention kernels on the device that is here: time, memory, error.

    python -m benchmarks.speed.attention

Forward and backward of packed rows in bf16, for each kernel that runs here,
against the reference in fp32 of the same numbers; FLOP/s count what a causal
row needs without packing. The last line is JSON; exit 1 where a kernel errs.
"""

import functools
import json
import statistics
import sys
import time

import jax
import numpy as np
from jax import numpy as jnp

from models import attention_kernels
from models.layers.mask import Mask
from models.layers.reference import attend
from train.core import hardware

# Rows, length, heads, kv heads, size of a head, documents of a row.
SHAPES = {
  "8b": (4, 4096, 32, 8, 128, 8),
  "8b whole": (4, 4096, 32, 8, 128, 1),
  "gpt2": (16, 1024, 12, 12, 64, 4),
}
KERNELS = {
  "cpu": ("reference", "chunked"),
  "gpu": ("reference", "chunked", "cudnn"),
  "tpu": ("reference", "chunked", "splash"),
}
TOLERANCE = 1e-2  # of a gradient's norm: bf16 operands give 2e-3 to 5e-3
ROUNDS = 10


def packed(n_rows: int, length: int, n_documents: int) -> Mask:
  """Rows cut into documents at random."""
  rng = np.random.default_rng(0)
  starts = np.zeros((n_rows, length), np.int32)
  starts[:, 0] = 1
  for row in starts:
    row[rng.choice(np.arange(1, length), n_documents - 1, replace=False)] = 1
  segments = starts.cumsum(1, dtype=np.int32)
  first = np.maximum.accumulate(np.where(starts, np.arange(length), 0), axis=1)
  positions = np.arange(length, dtype=np.int32) - first.astype(np.int32)
  where = jnp.asarray(positions), jnp.asarray(segments)
  return Mask(*where, *where)


def measure(kernel: str, shape: tuple[int, ...], peak: float) -> dict:
  """One kernel on one shape."""
  n_rows, length, n_heads, n_kv_heads, d_head, n_documents = shape
  rng = np.random.default_rng(1)
  operands = [
    jnp.asarray(rng.normal(size=(n_rows, length, n, d_head)), jnp.bfloat16)
    for n in (n_heads, n_kv_heads, n_kv_heads)
  ]
  mask = packed(n_rows, length, n_documents)
  weights = jnp.cos(jnp.arange(d_head, dtype=jnp.float32))

  def gradients(function):
    def total(q, k, v, mask):
      out = function(q, k, v, mask).astype(jnp.float32)
      return jnp.einsum("BTNH,H->", out, weights)

    return jax.jit(jax.grad(total, (0, 1, 2)))

  functions = {"reference": attend, "chunked": attention_kernels.chunked}
  functions |= {
    name: getattr(attention_kernels, name) for name in ("cudnn", "splash")
  }
  compiled = gradients(functions[kernel]).lower(*operands, mask).compile()
  found = jax.block_until_ready(compiled(*operands, mask))
  seconds = []
  for _ in range(ROUNDS):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*operands, mask))
    seconds.append(time.perf_counter() - start)

  exact = gradients(functools.partial(attention_kernels.chunked, chunk=128))
  wanted = exact(*(x.astype(jnp.float32) for x in operands), mask)
  errors = [
    float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
    for a, b in zip(found, wanted, strict=True)
  ]
  rate = 7 * n_rows * n_heads * length**2 * d_head / statistics.median(seconds)
  return {
    "milliseconds": round(1e3 * statistics.median(seconds), 3),
    "tflops": round(rate / 1e12, 1),
    "share_of_matmul": round(rate / peak, 3),
    "temporary_mib": compiled.memory_analysis().temp_size_in_bytes >> 20,
    "error": max(errors),
  }


def main() -> None:
  """All shapes and kernels that run here."""
  device = jax.devices()[0]
  jax.config.update("jax_default_matmul_precision", "highest")
  peak = hardware.measure_matmul(
    "bfloat16", 1024 if device.platform == "cpu" else 8192
  )
  rows, worst = {}, 0.0
  for name, shape in SHAPES.items():
    if device.platform == "cpu":  # a taste
      shape = (1, shape[1] // 4, 4, 2, *shape[4:])
    for kernel in KERNELS[device.platform]:
      found = measure(kernel, shape, peak)
      rows[f"{name}, {kernel}"] = found
      worst = max(worst, found["error"])
      print(
        f"{name:9} {kernel:10}", *(f"{k} {v:.4g}" for k, v in found.items())
      )
  print(
    json.dumps(
      {
        "name": "attention",
        "device": device.device_kind,
        "matmul_tflops": round(peak / 1e12, 1),
        "rows": rows,
        "worst": worst,
      }
    )
  )
  sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
  main()
