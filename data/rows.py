"""Rows of small tables, whole: JSON lines, CSV, TSV, Parquet.

What is asked of a model or shown to it has several columns. Unlike text to
train on, a row that cannot be read is an error: a figure over the rest of a
benchmark would be another figure.
"""

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
from etils import epath

from data import sources
from data.sources import record, stream

Row = dict[str, Any]


def read(source: str) -> list[Row]:
  """All rows of a file, a folder or a pattern, by the names of the files.

  Args:
    source: as in `data.sources`; JSON lines and CSV may be compressed.

  Raises:
    ValueError: it names no file, a file of another kind, or a row in it is none.
  """
  found = []
  for file in sources.files(source):
    found += _rows(file)
  if not found:
    raise ValueError(f"{source} has no rows: name a file that has.")
  return found


def _rows(file: record.File) -> Iterator[Row]:
  name = stream.plain_name(file.name)
  if name.endswith(".parquet"):
    with _plain(file.path), file.path.open("rb") as raw:
      yield from pq.read_table(raw).to_pylist()
    return
  text = _text(file)
  if name.endswith((".jsonl", ".ndjson")):
    for number, line in enumerate(text.split("\n"), start=1):
      if line.strip():
        yield _parsed(line, f"{file.path}:{number}")
  elif name.endswith((".csv", ".tsv")):
    lines = io.StringIO(text, newline="")
    dialect = "excel-tab" if name.endswith(".tsv") else "excel"
    for number, row in enumerate(csv.DictReader(lines, dialect=dialect), 1):
      if None in row or None in row.values():
        raise ValueError(
          f"{file.path}: row {number} has not as many fields as the header."
        )
      yield dict(row)
  else:
    raise ValueError(
      f"{file.path} is of no kind that has rows: give .jsonl, .csv, .tsv or "
      ".parquet."
    )


def _text(file: record.File) -> str:
  reading = record.Reading()
  with _plain(file.path), stream.opened(file, reading) as opened:
    return b"".join(stream.chunks(opened)).decode("utf-8-sig")


@contextlib.contextmanager
def _plain(path: epath.Path) -> Iterator[None]:
  """Says which file it is that cannot be read."""
  try:
    with stream.damage():
      yield
  except (OSError, UnicodeDecodeError, record.Damaged) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error


def _parsed(line: str, where: str) -> Row:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where} is no JSON: {error}") from error
  if not isinstance(row, dict):
    raise ValueError(f"{where} holds {type(row).__name__}, not an object.")
  return row
