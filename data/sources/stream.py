"""Files as streams, compressed or not, in bounded memory."""

import contextlib
import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import pyarrow as pa

from data.sources.record import EXCERPT_BYTES, Damaged, File, Reading

CHUNK_BYTES = 1 << 16
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@runtime_checkable
class Stream(Protocol):
  """Bytes, one after the other."""

  def read(self, size: int) -> bytes:
    """The next ones, at most `size`; none at the end."""
    ...


class Line(NamedTuple):
  """A line with its end; only the beginning of one that is too long."""

  number: int  # from 1
  raw: bytes
  n_bytes: int


def plain_name(name: str) -> str:
  """A file's name without the suffix of a compression, in lower case."""
  stem, dot, suffix = name.lower().rpartition(".")
  return stem if dot + suffix in COMPRESSIONS else name.lower()


@contextlib.contextmanager
def damage() -> Iterator[None]:
  """Turns what Arrow says of a broken file into `Damaged`.

  An error with an errno is the machine's (permission, EIO), not the file's.
  """
  try:
    yield
  except pa.ArrowException as error:
    raise Damaged(str(error)) from error
  except OSError as error:
    if error.errno is not None:
      raise
    raise Damaged(str(error)) from error


@contextlib.contextmanager
def opened(file: File, reading: Reading) -> Iterator[Stream]:
  """Opens a file as it was before it was compressed.

  Arrow's decompressor hands out as much as was asked for, whatever the ratio:
  100 MB of one letter are 12 KB of zstd. It takes members joined end to end,
  and raises where one is cut.
  """
  with damage(), file.path.open("rb") as raw:
    counted = _Counted(raw, reading)
    compression = COMPRESSIONS.get(f".{file.name.lower().rpartition('.')[2]}")
    if not compression:
      yield counted
      return
    source = pa.PythonFile(counted, mode="r")
    with pa.CompressedInputStream(source, compression) as stream:
      yield stream
    if not counted.n_bytes:
      raise Damaged("the file is empty, not even compressed")


class _Counted(io.RawIOBase):
  """Tells how much was read."""

  def __init__(self, file: Stream, reading: Reading):
    self._file, self._on_read, self.n_bytes = file, reading.on_read, 0

  def readable(self) -> bool:
    return True

  def read(self, size: int = -1) -> bytes:
    data = self._file.read(size)
    self.n_bytes += len(data)
    self._on_read(len(data))
    return data


def chunks(stream: Stream) -> Iterator[bytes]:
  """Reads a stream to its end."""
  while chunk := stream.read(CHUNK_BYTES):
    yield chunk


def lines(parts: Iterable[bytes], max_bytes: int) -> Iterator[Line]:
  r"""Cuts after "\n"; of a line longer than `max_bytes` only a head is kept."""
  number, held, size = 1, [], 0
  for part in parts:
    *ended, rest = part.split(b"\n")
    for piece in ended:
      if size <= max_bytes:
        held += [piece, b"\n"]
      yield Line(number, b"".join(held), size + len(piece) + 1)
      number, held, size = number + 1, [], 0
    if size <= max_bytes:
      held.append(rest)
    size += len(rest)
    if size > max_bytes:
      held = [b"".join(held)[:EXCERPT_BYTES]]
  if size:
    yield Line(number, b"".join(held), size)
