"""A GGUF file: what it says, and where its tensors lie.

Nothing in it is believed before it is checked: every count and length against
the bytes that are there, every offset against the tensors before it.
"""

import math
import struct
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from convert import blocks, header

_SCALARS = {  # value type -> how struct reads it
  0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q",
  11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_LONGEST = 256 << 20  # bytes of a header; vocabularies have ten
_MOST_DIMS = 4


class Tensor(NamedTuple):
  """Where a tensor lies; it is read as float32."""

  file: epath.Path
  kind: blocks.Kind
  shape: tuple[int, ...]  # as torch has it: rows first
  start: int  # byte in the file

  dtype = np.dtype(np.float32)

  @property
  def n_bytes(self) -> int:
    """On the disk."""
    return math.prod(self.shape) // self.kind.n_numbers * self.kind.n_bytes

  def read(self) -> np.ndarray:
    """The numbers."""
    with self.file.open("rb") as stream:
      stream.seek(self.start)
      raw = np.frombuffer(stream.read(self.n_bytes), np.uint8)
    return self.kind.unpack(raw.reshape(-1, self.kind.n_bytes)).reshape(
      self.shape
    )


class _Bytes:
  """The head of a file, read from front to back and never beyond its end."""

  def __init__(self, raw: bytes):
    self._raw = raw
    self.place = 0

  def take(self, n: int) -> bytes:
    if n > len(self._raw) - self.place:
      raise ValueError(f"{n} bytes at {self.place}, where the file ends")
    self.place += n
    return self._raw[self.place - n : self.place]

  def number(self, code: str) -> Any:
    (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))
    return value

  def text(self) -> str:
    return self.take(self.number("Q")).decode()

  def value(self, kind: int) -> Any:
    if kind == _STRING:
      return self.text()
    if kind in _SCALARS:
      return self.number(_SCALARS[kind])
    if kind != _ARRAY:
      raise ValueError(f"a value of type {kind}")
    inner, n = self.number("I"), self.number("Q")
    if inner == _STRING:
      # A string has eight bytes at least.
      if n > (len(self._raw) - self.place) // 8:
        raise ValueError(f"a list of {n} strings")
      return [self.text() for _ in range(n)]
    if inner not in _SCALARS:
      raise ValueError(f"a list of type {inner}")
    dtype = np.dtype(_SCALARS[inner]).newbyteorder("<")
    return np.frombuffer(self.take(n * dtype.itemsize), dtype)


def read(file: epath.Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
  """The metadata of a file and its tensors, by their names.

  Raises:
    ValueError: it is cut, damaged, or of a kind that is not known here.
  """
  size = file.stat().length
  with file.open("rb") as stream:
    head = _Bytes(stream.read(min(size, _LONGEST)))
  if size < 24 or head.take(4) != b"GGUF":
    raise ValueError(f"{file} is no GGUF file.")
  version = head.number("I")
  if version not in (2, 3):
    raise ValueError(
      f"{file} is of GGUF version {version}; 2 and 3 are known here, in the "
      "order of bytes of common processors."
    )
  try:
    n_tensors, n_values = head.number("Q"), head.number("Q")
    said: dict[str, Any] = {}
    for _ in range(n_values):
      key = head.text()
      if key in said:
        raise ValueError(f"{key!r} stands twice")
      said[key] = head.value(head.number("I"))
    listed = [_info(head) for _ in range(n_tensors)]
    if len({name for name, *_ in listed}) < len(listed):
      raise ValueError("a tensor stands twice")
    alignment = said.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in (
      8,
      16,
      32,
      64,
      128,
      4096,
    ):
      raise ValueError(f"an alignment of {alignment}")
  except (ValueError, OverflowError, MemoryError) as error:
    raise ValueError(f"{file} has a damaged header: {error}.") from error
  first = head.place + -head.place % alignment
  found = {
    name: Tensor(file, kind, shape, first + offset)
    for name, kind, shape, offset in sorted(listed, key=lambda x: x[-1])
  }
  header.lie_end_to_end(
    file,
    [(name, t.start, t.n_bytes) for name, t in found.items()],
    first=first,
    size=size,
    alignment=alignment,
  )
  return said, found


def _info(head: _Bytes) -> tuple[str, blocks.Kind, tuple[int, ...], int]:
  name, n_dims = head.text(), head.number("I")
  if not 1 <= n_dims <= _MOST_DIMS:
    raise ValueError(f"{name!r} has {n_dims} dimensions")
  dims = [head.number("Q") for _ in range(n_dims)]
  code, offset = head.number("I"), head.number("Q")
  if code not in blocks.KINDS:
    known = ", ".join(kind.name for kind in blocks.KINDS.values())
    raise ValueError(
      f"{name!r} is packed in way {code}, where there are {known}"
    )
  kind = blocks.KINDS[code]
  if not all(0 < dim < 2**40 for dim in dims) or dims[0] % kind.n_numbers:
    raise ValueError(f"{name!r} of {kind.name} has the sizes {dims}")
  return name, kind, tuple(reversed(dims)), offset
