"""Arrow files, as Hugging Face's `save_to_disk` leaves them.

Both of Arrow's formats, streams and files with a footer. Neither has checksums
of its own: a flipped bit within a text goes unnoticed, a cut does not.
"""

import io
from collections.abc import Iterator

import pyarrow as pa

from data.sources.parquet import columns_of, rows
from data.sources.record import (
  Bad,
  Damaged,
  Document,
  File,
  Reading,
  judge_record,
)
from data.sources.stream import damage

SUFFIXES = (".arrow",)
FOOTER_MAGIC = b"ARROW1"
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def read(file: File, reading: Reading) -> Iterator[Document | Bad]:
  """Yields a document a row, one record batch in memory at a time."""
  with damage(), file.path.open("rb") as raw:
    size = file.path.stat().length
    number = n_read = 0
    for batch in _batches(raw):
      columns = columns_of(file, batch.schema.names, reading)
      for row in rows(batch.select(columns), reading):
        yield judge_record(file, number, row, reading)
        number += 1
      reading.on_read(raw.tell() - n_read)
      n_read = raw.tell()
    reading.on_read(size - n_read)


def _batches(raw: io.IOBase) -> Iterator[pa.RecordBatch]:
  if raw.read(len(FOOTER_MAGIC)) == FOOTER_MAGIC:
    table = pa.ipc.open_file(raw)
    for i in range(table.num_record_batches):
      yield table.get_batch(i)
    return
  # A stream that ends between two batches reads like a whole one.
  raw.seek(-min(len(STREAM_END), raw.seek(0, 2)), 2)
  if raw.read() != STREAM_END:
    raise Damaged("the stream is cut: its end mark is missing")
  raw.seek(0)
  yield from pa.ipc.open_stream(raw)
