"""What a record of TFRecord or ArrayRecord holds, told by how it begins.

a tf.train.Example   begins with a newline (field 1 of its message); the text
                     is the feature of the name `text_key`
a JSON object        begins with "{", and is read like a JSON line
anything else        is the text itself, in UTF-8
"""

from collections.abc import Iterator

from data.sources.jsonl import from_json
from data.sources.record import (
  Bad,
  Document,
  File,
  Reading,
  bad,
  judge,
  judge_record,
  lacks_key,
)

# Wire types of protocol buffers, and the sizes of those that are fixed.
VARINT, BYTES = 0, 2
FIXED = {1: 8, 5: 4}


def payload(
  file: File, number: int, raw: bytes, reading: Reading
) -> Document | Bad:
  """Finds the text of a record."""
  if raw.startswith(b"{"):
    return from_json(file, number, raw, reading)
  if raw.startswith(b"\n"):
    try:
      features = example(raw)
    except (ValueError, IndexError):
      pass  # a text may begin with a newline
    else:
      return _of_example(file, number, features, reading)
  return judge(file, number, raw, reading)


def _of_example(
  file: File,
  number: int,
  features: dict[str, list[bytes] | None],
  reading: Reading,
) -> Document | Bad:
  if reading.columns:
    # Numbers, and lists of strings, are no part of the formats of records.
    record = {
      name: texts[0].decode(errors="surrogateescape")
      for name, texts in features.items()
      if texts and len(texts) == 1
    }
    return judge_record(file, number, record, reading)
  if reading.text_key not in features:
    return lacks_key(file, number, features, reading)
  texts = features[reading.text_key]
  if texts is None or len(texts) != 1:
    found = "numbers" if texts is None else f"{len(texts)} strings"
    reason = f"the feature {reading.text_key!r} holds {found}, not one string"
    return bad(file, number, "type", reason)
  return judge(file, number, texts[0], reading)


def example(raw: bytes) -> dict[str, list[bytes] | None]:
  """Reads a serialized tf.train.Example: the strings of each feature.

  A feature of numbers is None.

  Raises:
    ValueError, IndexError: it is none.
  """
  features = {}
  # Example.features -> Features.feature, a map: entries of key 1 and value 2.
  for block in _nested(raw, 1):
    for entry in _nested(block, 1):
      pair = dict(_fields(entry))
      kinds = dict(_fields(pair.get(2, b"")))  # one of bytes, floats, ints
      strings = list(_nested(kinds[1], 1)) if 1 in kinds else None
      features[pair[1].decode()] = strings if kinds else []
  return features


def _nested(raw: bytes, number: int) -> Iterator[bytes]:
  """The length-delimited fields of a message that has no others."""
  for found, value in _fields(raw):
    if found != number or not isinstance(value, bytes):
      raise ValueError(f"field {found}, not {number}")
    yield value


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
  """Takes a message of protocol buffers apart into (number, value)."""
  at = 0
  while at < len(raw):
    tag, at = _varint(raw, at)
    if tag & 7 == VARINT:
      value, at = _varint(raw, at)
    else:
      if tag & 7 == BYTES:
        size, at = _varint(raw, at)
      elif tag & 7 in FIXED:
        size = FIXED[tag & 7]
      else:
        raise ValueError(f"wire type {tag & 7}")
      value, at = raw[at : at + size], at + size
      if at > len(raw):
        raise ValueError("a field ends behind its message")
    yield tag >> 3, value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
  """Reads a number of 7 bits a byte; returns it and where it ends."""
  value = shift = 0
  while True:
    byte = raw[at]
    value |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return value, at
    if shift > 63:
      raise ValueError("a number of more than 64 bits")
