"""What a device can do at best: the measure that MFU is a share of."""

import time

import jax
from jax import numpy as jnp

# Dense bf16 FLOP/s of one device, from the vendors' data sheets.
_PEAK = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU7x": 1153.5e12,  # a chip is two devices
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA B200": 2250e12,
}


def peak_flops(dtype: str) -> float | None:
  """FLOP/s of all devices together; measured on a CPU, None where unknown."""
  device = jax.devices()[0]
  if device.platform == "cpu":  # virtual devices share the machine
    return measure_matmul(dtype)
  known = [
    peak for kind, peak in _PEAK.items() if device.device_kind.startswith(kind)
  ]
  return known[-1] * jax.device_count() if known else None


def measure_matmul(dtype: str, size: int = 2048) -> float:
  """Best FLOP/s of a large matrix product on the first device, of five."""
  x = jnp.ones((size, size), dtype)
  multiply = jax.jit(
    lambda x: jax.lax.dot(x, x, preferred_element_type=jnp.float32)
  )
  multiply(x).block_until_ready()
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    multiply(x).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)


def memory_bytes() -> int:
  """Peak bytes of the fullest local device; of the process on a CPU."""
  peaks = [
    (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    for device in jax.local_devices()
  ]
  if max(peaks):
    return max(peaks)
  with open("/proc/self/status") as status:
    line = next(line for line in status if line.startswith("VmHWM"))
  return int(line.split()[1]) * 1024
