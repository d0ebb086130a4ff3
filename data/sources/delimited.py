"""CSV and TSV with a header: a document is one column of a row."""

import codecs
import csv
from collections.abc import Iterator

from data.sources.record import (
  Bad,
  Damaged,
  Document,
  File,
  Reading,
  bad,
  judge_record,
  lacks_key,
  too_long,
)
from data.sources.stream import Line, chunks, lines, opened, plain_name

SUFFIXES = (".csv", ".tsv")


def read(file: File, reading: Reading) -> Iterator[Document | Bad]:
  """Yields a document a row; it goes by the number of its first line.

  A row of more or fewer fields than the header is bad. A quote that is never
  closed swallows lines up to the longest document, and no more.
  """
  with opened(file, reading) as source:
    held = _Lines(lines(chunks(source), reading.max_bytes))
    csv.field_size_limit(reading.max_bytes)
    dialect = "excel-tab" if ".tsv" in plain_name(file.name) else "excel"
    rows = csv.reader(held, dialect)
    header = next(rows, [])
    if not {*(reading.columns or (reading.text_key,))} & {*header}:
      raise Damaged(lacks_key(file, None, header, reading).reason)
    while True:
      first = held.number + 1
      held.too_long = None
      try:
        row = next(rows)
      except StopIteration:
        return
      except csv.Error as error:
        yield bad(file, first, "row", f"not a row ({error})")
        continue
      if held.too_long:
        number, raw, n_bytes = held.too_long
        yield too_long(file, number, n_bytes, raw, reading)
      elif len(row) != len(header) and row:
        reason = f"{len(row)} fields, and the header has {len(header)}"
        yield bad(file, first, "row", reason, repr(row))
      elif row:
        # Back to bytes: what was no UTF-8 is found by `judge`.
        if not reading.columns:
          row = [x.encode(errors="surrogateescape") for x in row]
        record = dict(zip(header, row, strict=True))
        yield judge_record(file, first, record, reading)


class _Lines:
  """Lines as csv wants them; of one that is too long an empty one is left."""

  def __init__(self, lines: Iterator[Line]):
    self._lines, self.number = lines, 0
    self.too_long: Line | None = None

  def __iter__(self) -> Iterator[str]:
    return self

  def __next__(self) -> str:
    line = next(self._lines)
    raw = (
      line.raw.removeprefix(codecs.BOM_UTF8) if not self.number else line.raw
    )
    self.number = line.number
    if len(raw) < line.n_bytes - len(codecs.BOM_UTF8):
      self.too_long = line
      return "\n"
    return raw.decode(errors="surrogateescape")
