"""TFRecord files, without TensorFlow.

A record is its length (8 bytes, little-endian), the masked CRC-32C of the
length, the payload, and the masked CRC-32C of the payload. What a payload may
be: data/sources/payload.py. The format counts no records: a file that is cut
exactly between two reads like a whole one, unless a manifest beside it counts.
"""

import struct
from collections.abc import Iterator

import google_crc32c

from data.sources.payload import payload
from data.sources.record import (
  EXCERPT_BYTES,
  Bad,
  Damaged,
  Document,
  File,
  Reading,
  bad,
  too_long,
)
from data.sources.stream import CHUNK_BYTES, Stream, opened

SUFFIXES = (".tfrecord", ".tfrecords")
MASK_DELTA = 0xA282EAD8


def read(file: File, reading: Reading) -> Iterator[Document | Bad]:
  """Yields a document a record; a bad payload checksum loses that one alone."""
  with opened(file, reading) as source:
    number = 0
    while header := _exactly(source, 12, number, may_end=True):
      n_bytes, crc = struct.unpack("<QI", header)
      if masked(google_crc32c.value(header[:8])) != crc:
        raise Damaged(f"the length of record {number} fails its checksum")
      found, kept = _payload(source, n_bytes, number, reading.max_bytes)
      (crc,) = struct.unpack("<I", _exactly(source, 4, number))
      if masked(found) != crc:
        yield bad(file, number, "checksum", "the payload's CRC differs", kept)
      elif n_bytes > reading.max_bytes:
        yield too_long(file, number, n_bytes, kept, reading)
      else:
        yield payload(file, number, kept, reading)
      number += 1


def masked(crc: int) -> int:
  """How TFRecord writes a CRC, so that no payload looks like its own."""
  return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def _payload(
  source: Stream, n_bytes: int, number: int, max_bytes: int
) -> tuple[int, bytes]:
  """Reads a payload: its CRC, and itself or the head of one too long."""
  crc, kept, left = 0, [], n_bytes
  while left:
    part = _exactly(source, min(left, CHUNK_BYTES), number)
    crc = google_crc32c.extend(crc, part)
    left -= len(part)
    if n_bytes <= max_bytes or not kept:
      kept.append(part if n_bytes <= max_bytes else part[:EXCERPT_BYTES])
  return crc, b"".join(kept)


def _exactly(
  source: Stream, size: int, number: int, may_end: bool = False
) -> bytes:
  data = source.read(size)
  while 0 < len(data) < size and (more := source.read(size - len(data))):
    data += more
  if len(data) == size or may_end and not data:
    return data
  raise Damaged(f"the file ends within record {number}")
