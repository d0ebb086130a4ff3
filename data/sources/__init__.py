"""Where documents come from: files of many formats, near or far.

A source is named by one string:
  "stdlib"                the Python standard library's source on this machine
  "notes.txt", "a.py"     a text file is a document, whatever its ending
  "web.jsonl"             JSON lines, a document a line (also .ndjson)
  "a.csv", "a.tsv"        a document a row, under a header
  "a.parquet", "a.arrow"  a document a row
  "a.tfrecord"            a document a record (also .array_record)
  "corpus/"               a folder: every file below it, hidden ones left out
  "corpus/**/*.jsonl.gz"  a pattern
  "corpus#train"          of a folder, the files with that word in their names
  "glue/2.0.0#train"      a split that TensorFlow Datasets prepared
  "saved#train"           a split that Hugging Face's save_to_disk left
Text, JSON lines, CSV and TFRecord may be compressed (.gz, .zst). Each may lie
wherever etils.epath reads: gs:// and s3:// need gcsfs or s3fs installed. Files
come in the order of their names, and documents' ids do not depend on where the
source lies. No file is ever held in memory as a whole, however large: a text is
cut at line ends, tables come in batches, records one by one.
"""

from collections.abc import Callable, Iterator
from types import ModuleType

from data.sources import (
  arrayrecord,
  arrow,
  delimited,
  jsonl,
  parquet,
  stream,
  text,
  tfrecord,
)
from data.sources.files import files
from data.sources.record import (
  DAMAGED,
  EMPTY_FILE,
  Bad,
  Damaged,
  Document,
  File,
  Reading,
  Record,
  bad,
)

__all__ = [
  "EMPTY_FILE", "Bad", "Document", "File", "Place", "Reading", "Record",
  "documents",
  "files", "read", "size_bytes",
]  # fmt: skip

READERS = (jsonl, delimited, parquet, arrow, tfrecord, arrayrecord)
Place = tuple[int, int]  # files done, documents and bad places of the next one


def read(
  source: str, reading: Reading, start: Place = (0, 0)
) -> Iterator[tuple[Place, Document | Bad]]:
  """Yields what a source gives, and the place behind it to go on from.

  Raises:
    ValueError: the source is not there, or the machine refuses to read it.
  """
  n_files, n_items = start
  for number, file in enumerate(files(source)[n_files:], start=n_files):
    n_done = n_items if number == n_files else 0
    for i, item in enumerate(_read_file(file, reading), start=1):
      if i > n_done:
        yield (number, i), item


def documents(
  source: str,
  text_key: str = "text",
  on_read: Callable[[int], None] = lambda n_bytes: None,
) -> Iterator[Document]:
  """Yields the documents of a source, and leaves out what is none."""
  reading = Reading(text_key=text_key, on_read=on_read)
  for _, item in read(source, reading):
    if isinstance(item, Document):
      yield item


def size_bytes(source: str) -> int:
  """Bytes of a source's files as they lie there, compressed or not."""
  return sum(file.path.stat().length for file in files(source))


def reader_of(file: File) -> ModuleType:
  """The reader of a file by its name, where "x.tfrecord-00003-of-00010" counts."""
  name = stream.plain_name(file.name)
  for reader in READERS:
    for suffix in reader.SUFFIXES:
      if name.endswith(suffix) or f"{suffix}-" in name.rpartition("/")[2]:
        return reader
  return text


def _read_file(file: File, reading: Reading) -> Iterator[Document | Bad]:
  """Reads a file; where the rest of it is lost, that is what comes last."""
  n_read = 0
  try:
    for item in reader_of(file).read(file, reading):
      n_read += 1
      yield item
    if file.n_records not in (None, n_read):
      raise Damaged(f"it should have {file.n_records} records")
  except Damaged as error:
    size = file.path.stat().length
    reason = f"{error}; {n_read} were read before"
    yield bad(file, None, DAMAGED, reason)._replace(lost_bytes=max(size, 1))
  except OSError as error:
    raise ValueError(
      f"Cannot read {file.path}: {error}. Mend it or leave it out of"
      " data.sources."
    ) from error
