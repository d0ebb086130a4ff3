"""A source to shards: read, judged, searched for leaks, tokenized, written.

The work is cut into units, each a shard of every split, and a unit ends where
the next document would overfill one of them. What a unit holds depends on the
documents and the settings alone, so that a work that was killed goes on behind
the last unit in its journal and ends at the same bytes.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import zstandard
from array_record.python import array_record_module
from etils import epath

from data import example, sources, store
from data.chat.encoder import Encoder
from data.chat.formats import Format
from data.decontaminate import Index
from data.example import Example
from data.journal import Journal
from data.nearby import file_sha256
from data.quarantine import Quarantine
from data.sources import Bad, Document, Place, Record
from data.tokenizer import Tokenizer

QUARANTINE, LEAKS = "quarantine.jsonl", "leaks.jsonl"
LISTINGS = (QUARANTINE, LEAKS)
BATCH_BYTES = 4 << 20  # of text that is encoded at once
BATCH_ITEMS = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """How a source becomes shards."""

  reading: sources.Reading
  form: Format  # of its records
  heldout_fraction: float | int
  max_bad_fraction: float | int
  shard_bytes: int
  tokenizer: Tokenizer
  encoder: Encoder  # of records that are more than a text
  leaks: Index | None  # None: leaks are not looked for


def split_of(name: str, heldout_fraction: float | int) -> str:
  """The split of a document."""
  return "heldout" if place(name) < heldout_fraction else "train"


def place(name: str) -> float:
  """A document's place in [0, 1), by its name: low ones are held out."""
  digest = hashlib.sha256(name.encode()).digest()
  return int.from_bytes(digest[:8]) / 2**64


def write(
  source: str, number: int, recipe: Recipe, journal: Journal
) -> dict[str, Any]:
  """Writes the shards of a source, or the rest of them.

  Args:
    source: to be read.
    number: of the source in its store.
    recipe: how.
    journal: of the work; its folder takes the shards.

  Returns:
    The source's entry in the manifest.

  Raises:
    ValueError: the source cannot be read, or too much of it is bad.
  """
  done = _done(number, journal)
  if not done or not done[-1]["is_last"]:
    with _Work(source, number, recipe, journal) as work:
      work.run(done)
    done = _done(number, journal)
  entry = {
    split: _total([unit["splits"][split] for unit in done])
    for split in store.SPLITS
  }
  counted = done[-1]["quarantine"]
  return entry | {
    "format": recipe.form,
    "n_leaks": done[-1]["n_leaks"],
    "bad": counted["kinds"],
    "lost_bytes": counted["lost_bytes"],
  }


def is_sound(entry: dict[str, Any], folder: pathlib.Path) -> bool:
  """Whether what a journal says is finished is still there."""
  for split in entry.get("splits", {}).values():
    for shard in split["shards"]:
      path = epath.Path(folder / shard["path"])
      index = store.index_path(path)
      if not (path.exists() and index.exists()):
        return False
      if file_sha256(path) != shard["sha256"]:
        return False
      if file_sha256(index) != shard["index_sha256"]:
        return False
  return all(
    (folder / name).exists() and (folder / name).stat().st_size >= n_bytes
    for name, n_bytes in entry.get("listed", {}).items()
  )


def _done(number: int, journal: Journal) -> list[dict[str, Any]]:
  """The finished units of a source, in their order."""
  return [e for e in journal.entries if e.get("source") == number]


def _total(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
  return {
    key: sum((unit[key] for unit in units), type(units[0][key])())
    for key in units[0]
  }


class _Work:
  """One source on its way."""

  def __init__(
    self, source: str, number: int, recipe: Recipe, journal: Journal
  ):
    self._source, self._number = source, number
    self._recipe, self._journal = recipe, journal
    listed = journal.entries[-1].get("listed", {}) if journal.entries else {}
    self._listings = {
      name: _Listing(journal.folder / name, listed.get(name, 0))
      for name in LISTINGS
    }
    self._quarantine = Quarantine(
      source, recipe.max_bad_fraction, self._listings[QUARANTINE].append
    )

  def __enter__(self) -> "_Work":
    return self

  def __exit__(self, *exception) -> None:
    for listing in self._listings.values():
      listing.close()

  def run(self, done: Sequence[dict[str, Any]]) -> None:
    """Reads from behind the units that are done to the end of the source."""
    recipe, quarantine = self._recipe, self._quarantine
    self._place, self._n_leaks, self._n_units = (0, 0), 0, len(done)
    if done:
      self._place, self._n_leaks = tuple(done[-1]["place"]), done[-1]["n_leaks"]
      behind = sources.files(self._source)[: self._place[0]]
      n_bytes = sum(file.path.stat().length for file in behind)
      quarantine.restore(done[-1]["quarantine"], n_bytes)
    self._begin_unit()
    reading = dataclasses.replace(recipe.reading, on_read=quarantine.read)
    for batch in _batches(sources.read(self._source, reading, self._place)):
      found = [item for _, item in batch if isinstance(item, Document)]
      encoded = iter(self._encoded(found))
      for place, item in batch:
        if isinstance(item, Document):
          self._take(item, next(encoded))
        else:
          quarantine.take(item)
        self._place = place
    quarantine.close()
    self._finish_unit(is_last=True)

  def _encoded(
    self, documents: Sequence[Document]
  ) -> Iterable[Sequence[int] | Example | Bad]:
    recipe = self._recipe
    if recipe.form == "text":
      return recipe.tokenizer.encode_batch([x.text for x in documents])
    return map(self._example, documents)

  def _example(self, document: Document) -> Example | Bad:
    try:
      if not isinstance(document, Record):
        raise ValueError("a text has no columns")
      return self._recipe.encoder.example(document.columns, self._recipe.form)
    except ValueError as error:
      return Bad(document.id, "format", str(error)[:300], document.text[:120])

  def _take(
    self, document: Document, ids: Sequence[int] | Example | Bad
  ) -> None:
    recipe = self._recipe
    if isinstance(ids, Bad):
      self._quarantine.take(ids)
      return
    split = split_of(document.id, recipe.heldout_fraction)
    leak = recipe.leaks.find(document.text) if recipe.leaks else None
    if not ids:  # WordPiece makes nothing of whitespace
      reason = "the tokenizer makes no token of it"
      self._quarantine.take(Bad(document.id, "empty", reason))
    elif leak:
      self._quarantine.take(document)
      self._n_leaks += 1
      entry = {"source": self._source, "document": document.id}
      self._listings[LEAKS].append(entry | leak._asdict())
    else:
      record = example.to_record(ids, recipe.tokenizer.vocab_size)
      if not self._writers[split].has_room(len(record), recipe.shard_bytes):
        self._finish_unit(is_last=False)
        self._begin_unit()
      self._quarantine.take(document)
      n_tokens, n_bytes = example.n_tokens(ids), len(document.text.encode())
      self._writers[split].add(document.id, record, n_tokens, n_bytes)

  def _begin_unit(self) -> None:
    name = f"{self._number:02d}-{self._n_units:05d}.arrayrecord"
    self._writers = {
      split: ShardWriter(self._journal.folder, f"{split}/{name}")
      for split in store.SPLITS
    }

  def _finish_unit(self, is_last: bool) -> None:
    self._n_units += 1
    splits = {split: writer.close() for split, writer in self._writers.items()}
    self._journal.append(
      {
        "source": self._number,
        "is_last": is_last,
        "place": self._place,
        "splits": splits,
        "n_leaks": self._n_leaks,
        "quarantine": self._quarantine.state(),
        "listed": {name: x.size() for name, x in self._listings.items()},
      }
    )


class _Listing:
  """A file of JSON lines that is cut to what was finished, then goes on."""

  def __init__(self, path: pathlib.Path, n_bytes: int):
    self._file = path.open("ab")
    self._file.truncate(n_bytes)

  def append(self, entry: dict[str, Any]) -> None:
    """Adds a line."""
    self._file.write(json.dumps(entry).encode() + b"\n")

  def size(self) -> int:
    """Bytes that are safe in the file."""
    self._file.flush()
    os.fsync(self._file.fileno())
    return self._file.seek(0, os.SEEK_END)

  def close(self) -> None:
    """Ends it."""
    self._file.close()


def _batches(
  items: Iterator[tuple[Place, Document | Bad]],
) -> Iterator[list[tuple[Place, Document | Bad]]]:
  batch, size = [], 0
  for place, item in items:
    batch.append((place, item))
    size += len(item.text) if isinstance(item, Document) else 0
    if size >= BATCH_BYTES or len(batch) >= BATCH_ITEMS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


class ShardWriter:
  """Writes one shard, and the index beside it."""

  def __init__(self, folder: pathlib.Path, path: str):
    """Writes folder/path; nothing is there before the first document."""
    self._folder, self._path = folder, path
    self._record_bytes = 0
    self._writer: array_record_module.ArrayRecordWriter | None = None
    self._index: list[str] = []
    self._counts = dict(n_documents=0, n_tokens=0, n_bytes=0)

  def has_room(self, record_bytes: int, shard_bytes: int) -> bool:
    """Whether a record of that size still fits; the first always does."""
    return not self._index or self._record_bytes + record_bytes <= shard_bytes

  def add(self, name: str, record: bytes, n_tokens: int, n_bytes: int) -> None:
    """Appends a document of `n_bytes` of UTF-8."""
    if not self._writer:
      path = self._folder / self._path
      path.parent.mkdir(parents=True, exist_ok=True)
      self._writer = array_record_module.ArrayRecordWriter(
        os.fspath(path), "group_size:1"
      )
    if not self._index:
      self._first_sha256 = hashlib.sha256(record).hexdigest()
    self._writer.write(record)
    self._index.append(json.dumps([name, n_tokens]) + "\n")
    self._record_bytes += len(record)
    self._counts["n_documents"] += 1
    self._counts["n_tokens"] += n_tokens
    self._counts["n_bytes"] += n_bytes

  def close(self) -> dict[str, Any]:
    """Finishes the shard; returns what it adds to its split's entry."""
    if not self._writer:
      return self._counts | {"shards": []}
    self._writer.close()
    path = epath.Path(self._folder / self._path)
    index = zstandard.compress("".join(self._index).encode())
    store.index_path(path).write_bytes(index)
    shard = store.Shard(
      path=self._path,
      n_documents=self._counts["n_documents"],
      size_bytes=path.stat().length,
      sha256=file_sha256(path),
      first_sha256=self._first_sha256,
      index_sha256=hashlib.sha256(index).hexdigest(),
    )
    return self._counts | {"shards": [dataclasses.asdict(shard)]}
