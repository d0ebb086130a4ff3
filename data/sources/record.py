"""What a file gives: documents, and places where there is none to be had.

Dirty input is no exception, it is a value: a reader yields a `Bad` where a
document should be and goes on. Only where nothing more of a file can be read
does it raise `Damaged`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

EXCERPT_BYTES = 120
# Kinds of `Bad`, beside those that a format has of its own.
DAMAGED = "damaged"  # the rest of a file
EMPTY_FILE = "empty_file"  # nothing was expected of it


class Document(NamedTuple):
  """A text and the name it goes by within its source."""

  id: (
    str  # "json/decoder.py"; "web.jsonl:12" by its line from 1, a record from 0
  )
  text: str


class Record(Document):
  """A document of several columns; its text is all of their strings, in lines."""

  columns: dict[str, Any]  # name -> value


class Bad(NamedTuple):
  """A place where no document could be read, and why."""

  where: str  # "corpus/web.jsonl:12"
  kind: str
  reason: str
  excerpt: str = ""
  lost_bytes: int = 0  # of a file that is damaged: its size


class Damaged(ValueError):
  """The rest of a file cannot be read."""


class File(NamedTuple):
  """One file of a source."""

  name: str  # within the source, with slashes
  path: epath.Path
  n_records: int | None = None  # where a manifest beside it tells


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """What every reader is told."""

  text_key: str = "text"  # of a JSON object, column of a table, feature
  # Those of a record, of which any may be missing; () reads texts.
  columns: tuple[str, ...] = ()
  max_bytes: int = 1 << 24  # of a document
  on_read: Callable[[int], None] = lambda n_bytes: None  # bytes of a file


def judge(
  file: File, number: int | None, value: Any, reading: Reading
) -> Document | Bad:
  """Makes a document of a value, or says what is wrong with it.

  Args:
    file: that the value is of.
    number: of its line or record; None for a file that is one document.
    value: text, or what was found in its place; bytes should be UTF-8.
    reading: says how long it may be.
  """
  if not isinstance(value, str | bytes):
    kind = type(value).__name__
    return bad(file, number, "type", f"the text is {kind}, not a string", value)
  if len(value) > reading.max_bytes:
    return too_long(file, number, len(value), value, reading)
  try:
    text, raw = value, value
    if isinstance(value, bytes):
      text = value.decode()
    else:
      raw = value.encode()
  except UnicodeDecodeError as error:
    byte = f"byte {error.start} is 0x{value[error.start]:02x}"
    return bad(file, number, "utf8", f"not UTF-8 text ({byte})", value)
  except UnicodeEncodeError as error:
    # JSON can spell half of a surrogate pair, which no UTF-8 can hold.
    reason = f"character {error.start} is a lone surrogate"
    return bad(file, number, "surrogate", reason, value)
  if len(raw) > reading.max_bytes:
    return too_long(file, number, len(raw), raw, reading)
  if "\0" in text:
    reason = f"character {text.index(chr(0))} is NUL"
    return bad(file, number, "nul", reason, value)
  if not text:
    return bad(file, number, "empty", "the text is empty")
  return Document(_joined(file.name, number), text)


def judge_record(
  file: File,
  number: int | None,
  record: Mapping[str, Any],
  reading: Reading,
  value: Any = "",
) -> Document | Bad:
  """Makes a document of what a record has, as `judge` does of a value.

  Args:
    file: that the record is of.
    number: of its line or record.
    record: column -> value.
    reading: says which of them are wanted.
    value: what was found, to be shown where it is bad.
  """
  wanted = reading.columns or (reading.text_key,)
  found = {name: record[name] for name in wanted if name in record}
  if not found:
    return lacks_key(file, number, record, reading, value)
  if not reading.columns:
    return judge(file, number, found[reading.text_key], reading)
  document = judge(file, number, "\n".join(_strings(found)), reading)
  if isinstance(document, Document):
    document = Record(*document)
    document.columns = found
  return document


def lacks_key(
  file: File, number: int | None, keys: Any, reading: Reading, value: Any = ""
) -> Bad:
  """A record that has other keys than those that are looked for."""
  found = ", ".join(map(str, keys))
  wanted = " or ".join(map(repr, reading.columns or (reading.text_key,)))
  reason = f"no key {wanted}; it has: {found}"
  return bad(file, number, "key", reason, value)


def _strings(value: Any) -> Iterator[str]:
  """Every text within a value, in its order."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping):
    value = list(value.values())
  if isinstance(value, list):
    for x in value:
      yield from _strings(x)


def bad(
  file: File, number: int | None, kind: str, reason: str, value: Any = ""
) -> Bad:
  """Says where, what and why, with the beginning of what was found."""
  where = _joined(str(file.path), number)
  return Bad(where, kind, " ".join(reason.split())[:300], _excerpt(value))


def too_long(
  file: File, number: int | None, n_bytes: int, value: Any, reading: Reading
) -> Bad:
  """A document above the limit, of which the beginning is enough."""
  reason = f"{n_bytes} bytes, and {reading.max_bytes} are allowed"
  return bad(file, number, "long", reason, value)


def _joined(name: str, number: int | None) -> str:
  return name if number is None else f"{name}:{number}"


def _excerpt(value: Any) -> str:
  if isinstance(value, str):
    value = value[:EXCERPT_BYTES].encode(errors="backslashreplace")
  if not isinstance(value, bytes):
    value = repr(value)[:EXCERPT_BYTES].encode(errors="backslashreplace")
  return value[:EXCERPT_BYTES].decode(errors="backslashreplace")
