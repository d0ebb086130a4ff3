"""Where documents come from: text files and JSONL, plain, gz or zst.

A source is named by one string:
  "stdlib"                the Python standard library's source on this machine
  "notes.txt", "a.py"     a text file is one document, whatever its ending
  "web.jsonl"             a JSONL file is one document a line (also .ndjson)
  "corpus/"               a folder: every file below it, hidden ones left out
  "corpus/**/*.jsonl.gz"  a pattern
Each may be compressed (.gz, .zst) and may lie wherever etils.epath reads.
Documents come in the order of their files' names, and their ids do not depend
on where the source lies.
"""

import fnmatch
import json
import os
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Set
from typing import NamedTuple

import zstandard
from etils import epath

JSON_SUFFIXES = (".jsonl", ".ndjson")
CHUNK_BYTES = 1 << 20
# Left out of "stdlib": what is not the library itself, or is missing on Debian.
NOT_LIBRARY = {"site-packages", "test", "tests", "idlelib"}


class Document(NamedTuple):
  """A text and the name it goes by within its source."""

  id: str  # "json/decoder.py", or "web.jsonl:12" with the line from 1
  text: str


def documents(
  source: str,
  text_key: str = "text",
  on_read: Callable[[int], None] = lambda n_bytes: None,
) -> Iterator[Document]:
  """Yields the documents of a source.

  Args:
    source: see the top of this page.
    text_key: the key of a JSON line that holds the text.
    on_read: told the bytes that were read from a file, as they are read.

  Raises:
    ValueError: if the source is not there, or what it holds is not readable as
      what its name says; the message names the file and the line.
  """
  for name, path in files(source):
    chunks = _decompressed(path, on_read)
    if _plain_name(path).endswith(JSON_SUFFIXES):
      yield from _json_documents(name, path, chunks, text_key)
    else:
      text = _utf8(b"".join(chunks), os.fspath(path))
      yield Document(name, text)


def size_bytes(source: str) -> int:
  """Bytes of a source's files as they lie there, compressed or not."""
  return sum(path.stat().length for _, path in files(source))


def files(source: str) -> list[tuple[str, epath.Path]]:
  """Lists a source's files, sorted, as (name within the source, path)."""
  if source == "stdlib":
    return _stdlib()
  path = epath.Path(source)
  pattern = ["**"]
  if any(c in source for c in "*?["):
    fixed = next(
      i for i, part in enumerate(path.parts) if any(c in part for c in "*?[")
    )
    pattern = list(path.parts[fixed:])
    path = epath.Path(*path.parts[:fixed]) if fixed else epath.Path(".")
  if path.is_dir():
    depth = sys.maxsize if "**" in pattern else len(pattern)
    listed = [
      (name, file)
      for name, file in _walk(path, depth)
      if _matches(name.split("/"), pattern)
    ]
  else:
    listed = [(path.name, path)] if path.exists() else []
  if not listed:
    raise ValueError(
      f"data.sources: {source!r} names no file here (looked from"
      f" {os.getcwd()}). Give a file, a folder, a pattern such as"
      " 'corpus/**/*.jsonl.gz', or 'stdlib'."
    )
  return sorted(listed)


def _stdlib() -> list[tuple[str, epath.Path]]:
  root = epath.Path(sysconfig.get_paths()["stdlib"])
  return sorted(
    (name, file)
    for name, file in _walk(root, sys.maxsize, NOT_LIBRARY)
    if name.endswith(".py")
  )


def _walk(
  folder: epath.Path, depth: int, left_out: Set[str] = frozenset()
) -> Iterator[tuple[str, epath.Path]]:
  """Yields the files down to a depth; hidden ones and caches left out."""
  for path in folder.iterdir():
    if path.name.startswith(".") or path.name in {"__pycache__", *left_out}:
      continue
    if not path.is_dir():
      yield path.name, path
    elif depth > 1:
      for name, file in _walk(path, depth - 1, left_out):
        yield f"{path.name}/{name}", file


def _matches(parts: list[str], pattern: list[str]) -> bool:
  """Whether a path fits a pattern, where "**" is any number of folders."""
  if not pattern or not parts:
    return pattern in ([], ["**"]) and not parts
  head, *rest = pattern
  if head == "**":
    return _matches(parts, rest) or _matches(parts[1:], pattern)
  return fnmatch.fnmatch(parts[0], head) and _matches(parts[1:], rest)


def _plain_name(path: epath.Path) -> str:
  return path.name.removesuffix(".gz").removesuffix(".zst")


def _decompressed(
  path: epath.Path, on_read: Callable[[int], None]
) -> Iterator[bytes]:
  """Yields a file's content in chunks; a truncated one raises at its end."""
  make = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
  }.get(path.suffix)
  try:
    with path.open("rb") as file:
      stream = make() if make else None
      while chunk := file.read(CHUNK_BYTES):
        on_read(len(chunk))
        if not stream:
          yield chunk
          continue
        while chunk:
          if stream.eof:  # files may be joined end to end
            stream = make()
          yield stream.decompress(chunk)
          chunk = stream.unused_data if stream.eof else b""
      if stream and not stream.eof:
        raise ValueError("it ends in the middle of its compressed data")
  except (ValueError, OSError, zlib.error, zstandard.ZstdError) as error:
    raise ValueError(
      f"Cannot read {os.fspath(path)}: {error}. Fetch it again or leave it out."
    ) from error


def _json_documents(
  name: str, path: epath.Path, chunks: Iterator[bytes], text_key: str
) -> Iterator[Document]:
  for number, line in enumerate(_lines(chunks), start=1):
    if not line.strip():
      continue
    where = f"{os.fspath(path)}, line {number}"
    try:
      record = json.loads(_utf8(line, where))
    except json.JSONDecodeError as error:
      raise ValueError(f"{where}: not JSON ({error}).") from error
    if not isinstance(record, dict) or text_key not in record:
      keys = ", ".join(record) if isinstance(record, dict) else repr(record)
      raise ValueError(
        f"{where}: no key {text_key!r}; it has: {keys[:200]}. Set data.text_key"
        " to the key that holds the text."
      )
    text = record[text_key]
    if not isinstance(text, str):
      raise ValueError(
        f"{where}: {text_key!r} holds {type(text).__name__}, not a string."
      )
    _check_encodable(text, where)
    yield Document(f"{name}:{number}", text)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
  rest = b""
  for chunk in chunks:
    *lines, rest = (rest + chunk).split(b"\n")
    yield from lines
  if rest:
    yield rest


def _utf8(raw: bytes, where: str) -> str:
  try:
    return raw.decode()
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{where}: not UTF-8 text (byte {error.start} is"
      f" 0x{raw[error.start]:02x}). Convert it or leave it out."
    ) from error


def _check_encodable(text: str, where: str) -> None:
  """JSON can spell half of a surrogate pair, which is no text."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"{where}: character {error.start} is the lone surrogate"
      f" {text[error.start]!r}, which no UTF-8 text can hold."
    ) from error
