"""Text files: one document each; a huge one is cut after a line's end."""

from collections.abc import Iterator

from data.sources.record import (
  EMPTY_FILE,
  Bad,
  Document,
  File,
  Reading,
  bad,
  judge,
  too_long,
)
from data.sources.stream import Line, chunks, lines, opened


def read(file: File, reading: Reading) -> Iterator[Document | Bad]:
  """Yields the file, or its pieces of at most `reading.max_bytes`.

  A file goes by its name, a piece of one by the number of its first line too:
  it is called the same whatever comes after it.
  """
  pieces = _pieces(file, reading)
  first, second = next(pieces, None), next(pieces, None)
  if first is None:
    yield bad(file, None, EMPTY_FILE, "the file is empty")
  elif second is None:
    yield _judged(file, None, first, reading)
  else:
    for piece in (first, second):
      yield _judged(file, piece.number, piece, reading)
    for piece in pieces:
      yield _judged(file, piece.number, piece, reading)


def _pieces(file: File, reading: Reading) -> Iterator[Line]:
  """Joins lines while they fit; one that is too long stands by itself."""
  with opened(file, reading) as source:
    number, held, size = 1, [], 0
    for line in lines(chunks(source), reading.max_bytes):
      if held and size + line.n_bytes > reading.max_bytes:
        yield Line(number, b"".join(held), size)
        held, size = [], 0
      if not held:
        number = line.number
      held.append(line.raw)
      size += line.n_bytes
    if held:
      yield Line(number, b"".join(held), size)


def _judged(
  file: File, number: int | None, piece: Line, reading: Reading
) -> Document | Bad:
  if piece.n_bytes > reading.max_bytes:
    return too_long(file, piece.number, piece.n_bytes, piece.raw, reading)
  found = judge(file, number, piece.raw, reading)
  if isinstance(found, Document):
    return found
  line = piece.number + piece.raw[: _first_bad(piece.raw)].count(b"\n")
  return found._replace(where=f"{file.path}:{line}")


def _first_bad(raw: bytes) -> int:
  try:
    return raw.decode().encode().index(b"\0")
  except UnicodeDecodeError as error:
    return error.start
