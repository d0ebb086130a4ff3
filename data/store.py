"""A prepared folder: token ids in ArrayRecord shards, under one manifest.

  manifest.json     fingerprints, settings, and for each source and split its
                    counts and shards (size and SHA-256 of each)
  tokenizer.*       what the ids mean
  train/ heldout/   shards; a record is one document, its ids without BOS and
                    EOS as little-endian uint16 or uint32; beside each shard
                    an index: the name and the length of each document

ArrayRecord hashes every chunk and refuses a damaged one on reading; sizes are
checked when a store is opened, and ids against the vocabulary as they are read.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from array_record.python import array_record_data_source, array_record_module
from etils import epath
from jaxtyping import Int

from data import tokenizer as tokenizer_lib

MANIFEST = "manifest.json"
FORMAT = 2  # of the manifest and what it lists
SPLITS = ("train", "heldout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """One ArrayRecord file as the manifest knows it."""

  path: str  # relative to the store, or absolute where it lies in another one
  n_documents: int
  size_bytes: int
  sha256: str
  index_sha256: str  # of the file beside it, see `index_path`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
  """One split of one source: a random-access sequence of documents' ids."""

  name: str
  n_documents: int
  n_tokens: int  # without BOS and EOS
  n_bytes: int  # UTF-8 bytes of the texts
  shards: tuple[Shard, ...]
  folder: str
  tokenizer: str  # fingerprint of the one that made the ids
  vocab_size: int

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of what the shards hold, in their order, and of its meaning."""
    shards = (shard.sha256 for shard in self.shards)
    return _sha256("".join([self.tokenizer, *shards]))

  def __len__(self) -> int:
    return self.n_documents

  def __getitem__(self, index: int) -> Int[np.ndarray, "T"]:
    if not 0 <= index < self.n_documents:
      raise IndexError(f"{self.name} has no document {index}")
    try:
      record = self._records[index]
    except (RuntimeError, OSError) as error:
      raise ValueError(
        f"{self._shard_path(index)} is damaged: {str(error)[:120]}. Fetch it"
        " again, or remove the store and prepare it again."
      ) from error
    ids = np.frombuffer(record, id_dtype(self.vocab_size)).astype(np.int32)
    if ids.size and ids.max() >= self.vocab_size:
      # A gather on the device would clamp it without a word.
      raise ValueError(
        f"{self._shard_path(index)}: document {index} has id {ids.max()}, but"
        f" the tokenizer beside it has ids below {self.vocab_size}. The shard"
        " belongs to another tokenizer: prepare the store again."
      )
    return ids

  def path_of(self, shard: Shard) -> epath.Path:
    """Where a shard lies."""
    return epath.Path(self.folder) / shard.path

  def name_of(self, index: int) -> str:
    """What a document is called within its source: "web.jsonl:12"."""
    shard = bisect.bisect_right(self._ends, index)
    first = self._ends[shard] - self.shards[shard].n_documents
    name, _ = self._index_of(self.shards[shard])[index - first]
    return name

  @functools.cached_property
  def lengths(self) -> Int[np.ndarray, "N"]:
    """Tokens of each document, without BOS and EOS."""
    entries = itertools.chain.from_iterable(map(self._index_of, self.shards))
    return np.array([n_tokens for _, n_tokens in entries], np.int64)

  def _index_of(self, shard: Shard) -> list[tuple[str, int]]:
    """Reads a shard's index: (name, tokens) of each document."""
    path = index_path(self.path_of(shard))
    raw = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(raw).hexdigest() != shard.index_sha256:
      raise ValueError(
        f"{path} is missing or not what was prepared (SHA-256 differs). Fetch"
        " it again, or remove the store and prepare it again."
      )
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    return [tuple(json.loads(line)) for line in lines.splitlines()]

  @functools.cached_property
  def _records(self) -> array_record_data_source.ArrayRecordDataSource:
    # With the counts given, no file is opened before it is read.
    return array_record_data_source.ArrayRecordDataSource(
      [f"{self.path_of(s)}[0:{s.n_documents}]" for s in self.shards]
    )

  @functools.cached_property
  def _ends(self) -> list[int]:
    return list(itertools.accumulate(s.n_documents for s in self.shards))

  def _shard_path(self, index: int) -> epath.Path:
    return self.path_of(self.shards[bisect.bisect_right(self._ends, index)])


class Store:
  """A prepared folder, opened. `train` and `heldout` hold a corpus a source."""

  def __init__(self, folder: epath.PathLike):
    """Opens a folder that `data.prepare` wrote.

    Raises:
      ValueError: if it is none, a shard is missing or cut, or the tokenizer is
        not the one that made the ids.
    """
    self.folder = epath.Path(folder)
    path = self.folder / MANIFEST
    if not path.exists():
      raise ValueError(
        f"{os.fspath(folder)} is no prepared store (no {MANIFEST}): write one"
        " with `python -m data.prepare`."
      )
    self.manifest: dict[str, Any] = json.loads(path.read_text())
    self.tokenizer = tokenizer_lib.load(folder)
    if self.tokenizer.fingerprint != self.manifest["tokenizer"]:
      raise ValueError(
        f"{os.fspath(folder)}: its ids were made by the tokenizer"
        f" {self.manifest['tokenizer'][:12]}, but the one beside them is"
        f" {self.tokenizer.fingerprint[:12]}. Bring back the right"
        " tokenizer.*, or remove the store and prepare it again."
      )
    self.train, self.heldout = (self._split(name) for name in SPLITS)

  def verify(self) -> None:
    """Reads every shard once and compares its SHA-256 with the manifest."""
    for corpus in self.train + self.heldout:
      for shard in corpus.shards:
        path = corpus.path_of(shard)
        if file_sha256(path) != shard.sha256:
          raise ValueError(
            f"{path} is not what was prepared (SHA-256 differs). Fetch it"
            " again, or remove the store and prepare it again."
          )
      corpus.lengths  # noqa: B018  reads every index against its digest

  def _split(self, name: str) -> tuple[Corpus, ...]:
    corpora = []
    for source in self.manifest["sources"]:
      entry = dict(source[name])
      shards = tuple(Shard(**shard) for shard in entry.pop("shards"))
      corpus = Corpus(
        name=source["name"],
        folder=os.fspath(self.folder),
        tokenizer=self.tokenizer.fingerprint,
        vocab_size=self.tokenizer.vocab_size,
        shards=shards,
        **entry,
      )
      for shard in shards:
        _check_size(corpus.path_of(shard), shard.size_bytes)
      corpora.append(corpus)
    return tuple(corpora)


class Writer:
  """Writes one split of one source, starting a new shard when one is full."""

  def __init__(
    self,
    folder: epath.Path,
    prefix: str,  # path of the shards within the folder: "train/0"
    vocab_size: int,
    shard_bytes: int,
  ):
    self._folder, self._prefix = folder, prefix
    self._dtype, self._shard_bytes = id_dtype(vocab_size), shard_bytes
    self._writer, self._in_shard, self._room = None, 0, 0
    self._index: list[str] = []
    self._shards: list[Shard] = []
    self._counts = dict(n_documents=0, n_tokens=0, n_bytes=0)

  def add(self, name: str, ids: Sequence[int], n_bytes: int) -> None:
    """Appends a document of `n_bytes` of UTF-8."""
    record = np.asarray(ids, self._dtype).tobytes()
    if self._writer and self._room < len(record):
      self._finish_shard()
    if not self._writer:
      path = self._folder / self._next_path()
      path.parent.mkdir(parents=True, exist_ok=True)
      self._writer = array_record_module.ArrayRecordWriter(
        os.fspath(path), "group_size:1"
      )
      self._room = self._shard_bytes
    self._writer.write(record)
    self._index.append(json.dumps([name, len(ids)]) + "\n")
    self._room -= len(record)
    self._in_shard += 1
    self._counts["n_documents"] += 1
    self._counts["n_tokens"] += len(ids)
    self._counts["n_bytes"] += n_bytes

  def close(self) -> dict[str, Any]:
    """Finishes the last shard; returns the split's entry in the manifest."""
    if self._writer:
      self._finish_shard()
    shards = [dataclasses.asdict(shard) for shard in self._shards]
    return self._counts | {"shards": shards}

  def _next_path(self) -> str:
    return f"{self._prefix}-{len(self._shards):05d}.arrayrecord"

  def _finish_shard(self) -> None:
    self._writer.close()
    relative = self._next_path()
    path = self._folder / relative
    index = zstandard.compress("".join(self._index).encode())
    index_path(path).write_bytes(index)
    self._shards.append(
      Shard(
        path=relative,
        n_documents=self._in_shard,
        size_bytes=path.stat().length,
        sha256=file_sha256(path),
        index_sha256=hashlib.sha256(index).hexdigest(),
      )
    )
    self._writer, self._in_shard, self._index = None, 0, []


def id_dtype(vocab_size: int) -> np.dtype:
  """The narrowest type of a record that holds every id."""
  return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def index_path(shard: epath.Path) -> epath.Path:
  """The file beside a shard: a line of JSON [name, tokens] a document, zstd."""
  return shard.with_suffix(".index.zst")


def file_sha256(path: epath.Path) -> str:
  """SHA-256 of a file's content, in hex."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _check_size(path: epath.Path, size_bytes: int) -> None:
  found = path.stat().length if path.exists() else None
  if found != size_bytes:
    state = "is missing" if found is None else f"has {found} bytes"
    raise ValueError(
      f"{path} {state}; the manifest says {size_bytes} bytes. Fetch it again,"
      " or remove the store and prepare it again."
    )


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
