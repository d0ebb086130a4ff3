"""ArrayRecord files. What a record may be: data/sources/payload.py."""

from collections.abc import Iterator

from array_record.python import array_record_module

from data.nearby import lent
from data.sources.payload import payload
from data.sources.record import Bad, Damaged, Document, File, Reading

SUFFIXES = (".array_record", ".arrayrecord")
# Chunk after chunk on this thread: nothing is read ahead.
OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def read(file: File, reading: Reading) -> Iterator[Document | Bad]:
  """Yields a document a record; the format checks every chunk by a hash.

  Its library reads local files only: one from elsewhere is copied for a while.
  """
  size = file.path.stat().length
  with lent(file.path) as path:
    number = n_records = 0
    try:
      reader = array_record_module.ArrayRecordReader(path, OPTIONS)
      n_records = reader.num_records()
      for number in range(n_records):
        yield payload(file, number, reader.read(), reading)
        reading.on_read(
          size * (number + 1) // n_records - size * number // n_records
        )
      reader.close()
    except (RuntimeError, IndexError) as error:
      counted = f", at record {number} of {n_records}" if n_records else ""
      raise Damaged(f"{str(error)[:100]}{counted}") from error
