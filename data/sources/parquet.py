"""Parquet: a document is one column of a row, or some of its columns."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.sources.record import (
  Bad,
  Damaged,
  Document,
  File,
  Reading,
  judge_record,
  lacks_key,
)
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
    columns = columns_of(file, table.schema_arrow.names, reading)
    n_rows, size = table.metadata.num_rows, file.path.stat().length
    number = 0
    for batch in table.iter_batches(
      batch_size=_rows_at_once(table, columns), columns=columns
    ):
      for row in rows(batch, reading):
        yield judge_record(file, number, row, reading)
        number += 1
      reading.on_read(
        size * number // n_rows - size * (number - batch.num_rows) // n_rows
      )
    if number != n_rows:
      raise Damaged(f"{number} rows, and its end says {n_rows}")


def columns_of(file: File, names: list[str], reading: Reading) -> list[str]:
  """Those of a table that are wanted.

  Raises:
    Damaged: it has none of them.
  """
  wanted = reading.columns or (reading.text_key,)
  found = [name for name in wanted if name in names]
  if not found:
    raise Damaged(lacks_key(file, None, names, reading).reason)
  return found


def rows(batch: pa.RecordBatch, reading: Reading) -> Iterator[dict[str, Any]]:
  """Yields each row, by columns."""
  if reading.columns:
    batch.validate(full=True)
    yield from batch.to_pylist()
    return
  for value in values(batch.column(reading.text_key)):
    yield {reading.text_key: value}


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


def _rows_at_once(table: pq.ParquetFile, columns: list[str]) -> int:
  """Rows that hold about BATCH_BYTES of the columns."""
  groups = [
    table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)
  ]

  def weight(group) -> float:
    # A column of lists or of structures is several, called "labels.list.x".
    parts = (group.column(i) for i in range(group.num_columns))
    of_ours = (x for x in parts if x.path_in_schema.split(".")[0] in columns)
    n_bytes = sum(part.total_uncompressed_size for part in of_ours)
    return n_bytes / max(group.num_rows, 1)

  heaviest = max(map(weight, groups), default=1)
  return int(min(max(BATCH_BYTES / max(heaviest, 1), 1), 4096))
