"""A prepared folder: token ids in ArrayRecord shards, under one manifest.

  manifest.json     fingerprints, settings, and for each source and split its
                    counts and shards (size and SHA-256 of each); its own
                    SHA-256, so that a flipped digit is found
  tokenizer.*       what the ids mean
  quarantine.jsonl  what could not be read, each with its place and reason
  leaks.jsonl       documents left out, for what of a benchmark they held
  train/ heldout/   shards; a record is one document, its ids without BOS and
                    EOS as little-endian uint16 or uint32, or an example
                    (data/example.py); beside each shard
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
from typing import Any

import numpy as np
import zstandard
from array_record.python import array_record_data_source
from etils import epath
from jaxtyping import Int

from data import example
from data import tokenizer as tokenizer_lib
from data.nearby import cached, file_sha256

MANIFEST = "manifest.json"
FORMAT = 4  # of the manifest and what it lists
SPLITS = ("train", "heldout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """One ArrayRecord file as the manifest knows it."""

  path: str  # relative to the store, or absolute where it lies in another one
  n_documents: int
  size_bytes: int
  sha256: str
  first_sha256: str  # of its first record: it is not another one's content
  index_sha256: str  # of the file beside it, see `index_path`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
  """One split of one source: a random-access sequence of documents."""

  name: str
  n_documents: int
  n_tokens: int  # without BOS and EOS
  n_bytes: int  # UTF-8 bytes of the texts
  shards: tuple[Shard, ...]
  folder: str
  tokenizer: str  # fingerprint of the one that made the ids
  vocab_size: int
  ends: tuple[int, int]  # the ids that a document begins and ends with
  form: str = "text"  # of its records: data/chat/formats.py

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of what the shards hold, in their order, and of its meaning."""
    shards = (shard.sha256 for shard in self.shards)
    return _sha256("".join([self.tokenizer, *shards]))

  def __len__(self) -> int:
    return self.n_documents

  @property
  def is_examples(self) -> bool:
    """Whether its documents say themselves what is learnt of them."""
    return self.form != "text"

  def __getitem__(self, index: int) -> example.Document:
    if not 0 <= index < self.n_documents:
      raise IndexError(f"{self.name} has no document {index}")
    try:
      record = self._record(index)
    except (RuntimeError, OSError) as error:
      raise ValueError(
        f"{self._path_at(index)} is damaged: {str(error)[:120]}. Fetch it"
        " again, or remove the store and prepare it again."
      ) from error
    document = example.from_record(
      record, self.vocab_size, is_example=self.is_examples
    )
    ids = document.tokens if self.is_examples else document
    if ids.size and ids.max() >= self.vocab_size:
      # A gather on the device would clamp it without a word.
      raise ValueError(
        f"{self._path_at(index)}: document {index} has id {ids.max()}, but"
        f" the tokenizer beside it has ids below {self.vocab_size}. The shard"
        " belongs to another tokenizer: prepare the store again."
      )
    return document

  def path_of(self, shard: Shard) -> epath.Path:
    """Where a shard lies."""
    return epath.Path(self.folder) / shard.path

  def name_of(self, index: int) -> str:
    """What a document is called within its source: "web.jsonl:12"."""
    number, place = self._place(index)
    name, _ = self._index_of(self.shards[number])[place]
    return name

  @functools.cached_property
  def lengths(self) -> Int[np.ndarray, "N"]:
    """Tokens of each document, of a text without BOS and EOS."""
    entries = itertools.chain.from_iterable(map(self._index_of, self.shards))
    return np.array([n_tokens for _, n_tokens in entries], np.int64)

  def _index_of(self, shard: Shard) -> list[tuple[str, int]]:
    return _read_index(index_path(self.path_of(shard)), shard.index_sha256)

  def _record(self, index: int) -> bytes:
    number, place = self._place(index)
    if number not in self._opened:
      self._opened[number] = self._open(self.shards[number])
    return self._opened[number][place]

  def _open(
    self, shard: Shard
  ) -> array_record_data_source.ArrayRecordDataSource:
    """Opens a shard; that it is this one, its first record tells."""
    path = cached(self.path_of(shard), shard.sha256)
    opened = array_record_data_source.ArrayRecordDataSource(
      [f"{path}[0:{shard.n_documents}]"]
    )
    if hashlib.sha256(opened[0]).hexdigest() != shard.first_sha256:
      raise ValueError(
        f"{path} holds other documents than were prepared. Fetch it again, or"
        " remove the store and prepare it again."
      )
    return opened

  @functools.cached_property
  def _opened(
    self,
  ) -> dict[int, array_record_data_source.ArrayRecordDataSource]:
    return {}

  @functools.cached_property
  def _ends(self) -> list[int]:
    return list(itertools.accumulate(s.n_documents for s in self.shards))

  def _place(self, index: int) -> tuple[int, int]:
    """A document's shard, and its number there."""
    number = bisect.bisect_right(self._ends, index)
    return number, index - self._ends[number] + self.shards[number].n_documents

  def _path_at(self, index: int) -> epath.Path:
    return self.path_of(self.shards[self._place(index)[0]])


class Store:
  """A prepared folder, opened. `train` and `heldout` hold a corpus a source."""

  def __init__(self, folder: epath.PathLike):
    """Opens a folder that `data.prepare` wrote.

    Raises:
      ValueError: if it is none, a shard is missing or cut, or the tokenizer is
        not the one that made the ids.
    """
    self.folder = epath.Path(folder)
    self.manifest = read_manifest(self.folder)
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
    """Reads every file once and compares its SHA-256 with the manifest."""
    digests = {
      corpus.path_of(shard): shard.sha256
      for corpus in self.train + self.heldout
      for shard in corpus.shards
    }
    for name, digest in self.manifest["files"].items():
      digests[self.folder / name] = digest
    for path, digest in digests.items():
      if not path.exists() or file_sha256(path) != digest:
        raise ValueError(
          f"{path} is not what was prepared (SHA-256 differs). Fetch it"
          " again, or remove the store and prepare it again."
        )
    for corpus in self.train + self.heldout:
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
        ends=(self.tokenizer.bos_id, self.tokenizer.eos_id),
        shards=shards,
        form=source["format"],
        **entry,
      )
      for shard in shards:
        _check_size(corpus.path_of(shard), shard.size_bytes)
      corpora.append(corpus)
    return tuple(corpora)


def write_manifest(folder: epath.Path, content: dict[str, Any]) -> None:
  """Writes the manifest with a digest over itself: a store's last file."""
  content = {"format": FORMAT} | content
  content["sha256"] = _manifest_sha256(content)
  (folder / MANIFEST).write_text(json.dumps(content, indent=2))


def read_manifest(folder: epath.Path) -> dict[str, Any]:
  """Reads the manifest of a prepared folder.

  Raises:
    ValueError: there is none, or it is not what was written.
  """
  path = folder / MANIFEST
  if not path.exists():
    raise ValueError(
      f"{folder} is no prepared store (no {MANIFEST}): write one with"
      " `python -m data.prepare`."
    )
  try:
    content = json.loads(path.read_bytes())
    sound = _manifest_sha256(content) == content["sha256"]
    sound &= content["format"] == FORMAT
  except (ValueError, TypeError, KeyError, AttributeError):
    sound = False
  if not sound:
    raise ValueError(
      f"{path} is not what was written, or of another version of this program."
      " Fetch it again, or remove the store and prepare it again."
    )
  return content


def _manifest_sha256(content: dict[str, Any]) -> str:
  rest = {key: value for key, value in content.items() if key != "sha256"}
  return _sha256(json.dumps(rest, sort_keys=True))


@functools.lru_cache(maxsize=8)
def _read_index(path: epath.Path, sha256: str) -> list[tuple[str, int]]:
  """Reads the index of a shard: (name, tokens) of each document."""
  raw = path.read_bytes() if path.exists() else b""
  if hashlib.sha256(raw).hexdigest() != sha256:
    raise ValueError(
      f"{path} is missing or not what was prepared (SHA-256 differs). Fetch"
      " it again, or remove the store and prepare it again."
    )
  lines = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
  return [tuple(json.loads(line)) for line in lines.splitlines()]


def index_path(shard: epath.Path) -> epath.Path:
  """The file beside a shard: a line of JSON [name, tokens] a document, zstd."""
  return shard.with_suffix(".index.zst")


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
