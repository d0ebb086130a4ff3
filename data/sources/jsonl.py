"""JSON lines: a document is what one key of a line's object holds."""

import codecs
import json
from collections.abc import Iterator

from data.sources.record import (
  Bad,
  Document,
  File,
  Reading,
  bad,
  judge_record,
  too_long,
)
from data.sources.stream import chunks, lines, opened

SUFFIXES = (".jsonl", ".ndjson")


def read(file: File, reading: Reading) -> Iterator[Document | Bad]:
  """Yields a document a line; blank lines are none."""
  with opened(file, reading) as source:
    for line in lines(chunks(source), reading.max_bytes):
      if line.n_bytes > reading.max_bytes:
        yield too_long(file, line.number, line.n_bytes, line.raw, reading)
      elif line.raw.strip():
        yield from_json(file, line.number, line.raw, reading)


def from_json(
  file: File, number: int, raw: bytes, reading: Reading
) -> Document | Bad:
  """Reads one JSON object."""
  try:
    record = json.loads(raw.removeprefix(codecs.BOM_UTF8).decode())
  except UnicodeDecodeError as error:
    reason = f"not UTF-8 text (byte {error.start} is 0x{raw[error.start]:02x})"
    return bad(file, number, "utf8", reason, raw)
  # A number of 5,000 digits is a plain ValueError; 1,000 brackets recurse.
  except (ValueError, RecursionError) as error:
    kind = "nul" if b"\0" in raw else "json"
    return bad(file, number, kind, f"not JSON ({error})", raw)
  if not isinstance(record, dict):
    kind = type(record).__name__
    return bad(file, number, "json", f"{kind}, not a JSON object", raw)
  return judge_record(file, number, record, reading, raw)
