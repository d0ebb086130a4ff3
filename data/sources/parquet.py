"""Parquet: a document is one column of a row."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from data.sources.jsonl import lacks_key
from data.sources.record import Bad, Damaged, Document, File, Reading, judge
from data.sources.stream import damage

SUFFIXES = (".parquet",)
BATCH_BYTES = 8 << 20  # of text that is decoded at once


def read(file: File, reading: Reading) -> Iterator[Document | Bad]:
  """Yields a document a row, in batches that are cut within row groups.

  What is held of a file is a batch and a page of it (1 MB, unless its writer
  was told otherwise).
  Checksums of pages are verified where the writer left them; pyarrow's does
  not unless asked to.
  """
  with damage(), file.path.open("rb") as raw:
    table = pq.ParquetFile(
      raw,
      # Else whole row groups are fetched ahead.
      pre_buffer=False,
      buffer_size=1 << 20,
      page_checksum_verification=True,
    )
    if reading.text_key not in table.schema_arrow.names:
      names = table.schema_arrow.names
      raise Damaged(lacks_key(file, None, names, reading).reason)
    n_rows, size = table.metadata.num_rows, file.path.stat().length
    number = 0
    for batch in table.iter_batches(
      batch_size=_rows_at_once(table, reading.text_key),
      columns=[reading.text_key],
    ):
      for value in values(batch.column(0)):
        yield judge(file, number, value, reading)
        number += 1
      reading.on_read(
        size * number // n_rows - size * (number - batch.num_rows) // n_rows
      )
    if number != n_rows:
      raise Damaged(f"{number} rows, and its end says {n_rows}")


def values(column: pa.Array) -> Iterator[bytes | object]:
  """Yields text as bytes, whatever they hold, and anything else as it is."""
  column.validate()
  if pa.types.is_dictionary(column.type):
    column = column.dictionary_decode()
  if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
    column = column.cast(pa.large_binary())
  column.validate(full=True)
  for value in column:
    yield value.as_py()


def _rows_at_once(table: pq.ParquetFile, column: str) -> int:
  """Rows that hold about BATCH_BYTES of the column."""
  index = table.schema_arrow.names.index(column)
  groups = [
    table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)
  ]
  heaviest = max(
    (
      group.column(index).total_uncompressed_size / max(group.num_rows, 1)
      for group in groups
    ),
    default=1,
  )
  return int(min(max(BATCH_BYTES / max(heaviest, 1), 1), 4096))
