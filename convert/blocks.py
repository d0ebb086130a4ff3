"""Blocks of quantized numbers as ggml packs them, to float32.

A block is a row's 32 numbers, or 256 of the K kinds, whose groups have scales
of their own in 4 or 6 bits. Extra letter: U blocks.
"""

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float, UInt8

Raw = UInt8[np.ndarray, "U bytes"]
Numbers = Float[np.ndarray, "U n"]


class Kind(NamedTuple):
  """How numbers are packed."""

  name: str
  n_numbers: int  # of a block
  n_bytes: int
  unpack: Callable[[Raw], Numbers]


def _half(raw: Raw) -> Numbers:
  return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(raw: UInt8[np.ndarray, "... bytes"]) -> np.ndarray:
  """All low halves of the bytes, then all high ones."""
  return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _fifth_bits(raw: Raw) -> np.ndarray:
  """32 bits, the lowest of the first byte first, as 0 or 16."""
  return np.unpackbits(raw, axis=-1, bitorder="little") << 4


def _q4_0(raw: Raw) -> Numbers:
  return _half(raw[:, :2]) * (_nibbles(raw[:, 2:]).astype(np.float32) - 8)


def _q4_1(raw: Raw) -> Numbers:
  return _half(raw[:, :2]) * _nibbles(raw[:, 4:]) + _half(raw[:, 2:4])


def _q5_0(raw: Raw) -> Numbers:
  q = _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])
  return _half(raw[:, :2]) * (q.astype(np.float32) - 16)


def _q5_1(raw: Raw) -> Numbers:
  q = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
  return _half(raw[:, :2]) * q + _half(raw[:, 2:4])


def _q8_0(raw: Raw) -> Numbers:
  return _half(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


def _pairs(raw: Raw) -> np.ndarray:
  """Numbers of two bits: of each 32 bytes the lowest bits, then the next."""
  shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
  return (raw.reshape(len(raw), -1, 1, 32) >> shifts & 3).reshape(len(raw), -1)


def _by_group(q: np.ndarray, scales: np.ndarray, least: np.ndarray) -> Numbers:
  """q * scale - least, each of as many numbers as there are scales."""
  groups = q.reshape(*scales.shape, -1).astype(np.float32)
  out = scales[..., None] * groups - least[..., None]
  return out.reshape(len(q), -1)


def _q2_k(raw: Raw) -> Numbers:
  packed, d, d_least = raw[:, :16], _half(raw[:, 80:82]), _half(raw[:, 82:84])
  q = _pairs(raw[:, 16:80])
  return _by_group(q, d * (packed & 15), d_least * (packed >> 4))


def _q3_k(raw: Raw) -> Numbers:
  high, packed, d = raw[:, :32], raw[:, 96:108], _half(raw[:, 108:110])
  low4 = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=-1)
  shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
  high2 = (packed[:, None, 8:] >> shifts & 3).reshape(len(raw), 16)
  scales = d * ((low4 | high2 << 4).astype(np.float32) - 32)
  bits = high[:, None] >> np.arange(8, dtype=np.uint8)[:, None] & 1
  q = _pairs(raw[:, 32:96]).astype(np.float32)
  q -= 4 - 4 * bits.reshape(len(raw), -1).astype(np.float32)
  return _by_group(q, scales, np.zeros_like(scales))


def _scales_of_k4(packed: Raw) -> tuple[np.ndarray, np.ndarray]:
  """Eight scales and eight least values, six bits each, of twelve bytes."""
  a, b, c = packed[:, :4], packed[:, 4:8], packed[:, 8:]
  scales = [a & 63, c & 15 | a >> 6 << 4]
  least = [b & 63, c >> 4 | b >> 6 << 4]
  return np.concatenate(scales, axis=-1), np.concatenate(least, axis=-1)


def _nibbles_of_k(raw: Raw) -> np.ndarray:
  """Of each 32 bytes the low halves, then the high ones."""
  return _nibbles(raw.reshape(len(raw), 4, 32)).reshape(len(raw), -1)


def _q4_k(raw: Raw) -> Numbers:
  scales, least = _scales_of_k4(raw[:, 4:16])
  d, d_least = _half(raw[:, :2]), _half(raw[:, 2:4])
  return _by_group(_nibbles_of_k(raw[:, 16:]), d * scales, d_least * least)


def _q5_k(raw: Raw) -> Numbers:
  scales, least = _scales_of_k4(raw[:, 4:16])
  d, d_least = _half(raw[:, :2]), _half(raw[:, 2:4])
  bits = raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
  q = _nibbles_of_k(raw[:, 48:]) | bits.reshape(len(raw), -1) << 4
  return _by_group(q, d * scales, d_least * least)


def _q6_k(raw: Raw) -> Numbers:
  low = raw[:, :128].reshape(len(raw), 2, 64)
  scales = raw[:, 192:208].view(np.int8).astype(np.float32)
  high = _pairs(raw[:, 128:192])
  q = _nibbles(low).reshape(len(raw), -1) | high << 4
  scales = _half(raw[:, 208:210]) * scales
  return _by_group(q.astype(np.float32) - 32, scales, np.zeros_like(scales))


def _plain(dtype: np.dtype) -> Callable[[Raw], Numbers]:
  return lambda raw: np.ascontiguousarray(raw).view(dtype).astype(np.float32)


# By the number that stands for it in a file.
KINDS = {
  0: Kind("F32", 1, 4, _plain(np.dtype(np.float32))),
  1: Kind("F16", 1, 2, _plain(np.dtype(np.float16))),
  2: Kind("Q4_0", 32, 18, _q4_0),
  3: Kind("Q4_1", 32, 20, _q4_1),
  6: Kind("Q5_0", 32, 22, _q5_0),
  7: Kind("Q5_1", 32, 24, _q5_1),
  8: Kind("Q8_0", 32, 34, _q8_0),
  10: Kind("Q2_K", 256, 84, _q2_k),
  11: Kind("Q3_K", 256, 110, _q3_k),
  12: Kind("Q4_K", 256, 144, _q4_k),
  13: Kind("Q5_K", 256, 176, _q5_k),
  14: Kind("Q6_K", 256, 210, _q6_k),
  30: Kind("BF16", 1, 2, _plain(np.dtype(ml_dtypes.bfloat16))),
}
