"""Makes tests/golden/blocks.npz: what the package gguf unpacks blocks to.

    python -m benchmarks.parity.blocks

Two blocks of each kind, their bytes from a seed.
"""

import pathlib

import gguf
import numpy as np

from convert import blocks

STORED = pathlib.Path("tests/golden/blocks.npz")


def raw(kind: blocks.Kind, n_blocks: int, seed: int = 0) -> np.ndarray:
  """Blocks of any bits; not every one of them has finite scales."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (n_blocks, kind.n_bytes), dtype=np.uint8)


def theirs(code: int, packed: np.ndarray) -> np.ndarray:
  """The numbers of blocks, as the package has them."""
  found = gguf.quants.dequantize(
    packed.reshape(-1), gguf.GGMLQuantizationType(code)
  )
  return np.float32(found).reshape(len(packed), -1)


def main() -> None:
  """Writes the file."""
  arrays = {}
  for code, kind in blocks.KINDS.items():
    packed = raw(kind, 2)
    arrays[f"{kind.name}/bytes"] = packed
    arrays[f"{kind.name}/numbers"] = theirs(code, packed)
  np.savez_compressed(STORED, **arrays)
  print(f"{STORED}: {len(arrays)} arrays, {STORED.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
