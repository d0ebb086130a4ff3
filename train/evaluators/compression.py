"""What general compressors make of the held-out text, in bits per byte."""

import bz2
import gzip
import lzma
from collections.abc import Iterable


def bits_per_byte(texts: Iterable[str]) -> dict[str, float]:
  """gzip, bz2 and xz at their strongest, on all texts as one file."""
  raw = "".join(texts).encode()
  packed = {
    "gzip": gzip.compress(raw, 9),
    "bz2": bz2.compress(raw, 9),
    "xz": lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME),
  }
  return {
    f"{name}_bits_per_byte": 8 * len(data) / max(len(raw), 1)
    for name, data in packed.items()
  }
