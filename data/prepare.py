"""Documents to a store: trains the tokenizer, splits, tokenizes, writes shards.

    python -m data.prepare --config=configs/quickstart.py --workdir=runs/quick

A document is held out by the hash of its name: the split depends neither on the
order of the documents nor on what else is in the corpus. The tokenizer is
trained on documents of the train split only.

Several sources are kept apart in one store, so that `data.weights` can mix them
later. A source may also be a folder that was prepared before: its shards are
referred to where they lie, with the split they have, and its tokenizer must be
this store's (`tokenizer.kind="saved"`, `tokenizer.path` that folder).

The folder appears under its name when it is whole, never before.
"""

import dataclasses
import hashlib
import heapq
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from configs import door, fields
from configs.ranges import Bytes, Fraction, Positive
from data import sources as sources_lib
from data import store as store_lib
from data import tokenizer as tokenizer_lib

BATCH_BYTES = 4 << 20  # of text that is encoded at once
REPORT_SECONDS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which documents to prepare, and where the store lies."""

  sources: tuple[str, ...] = ("stdlib",)  # see data/sources.py
  weights: tuple[Positive, ...] = ()  # shares of tokens; () is as they are
  text_key: str = "text"  # of a JSON line
  heldout_fraction: Fraction = 0.02  # of the documents
  shard_bytes: Bytes = 256 << 20  # of ids in a shard, before compression
  path: str = ""  # the store's folder; "" is WORKDIR/store

  def __post_init__(self):
    fields.check(self)
    if not all(self.sources) or not self.sources:
      raise ValueError(
        f"data.sources={self.sources} names nothing: give at least one source."
      )
    if self.weights and len(self.weights) != len(self.sources):
      raise ValueError(
        f"data.weights={self.weights} has {len(self.weights)} shares for"
        f" {len(self.sources)} sources: give one each, or none."
      )


SECTIONS = {"data": Config, "tokenizer": tokenizer_lib.Config}


def folder(config: Config, workdir: epath.PathLike) -> epath.Path:
  """Where the store of a run lies."""
  return epath.Path(config.path or epath.Path(workdir) / "store")


def prepare(
  config: Config,
  tokenizer_config: tokenizer_lib.Config,
  out_dir: epath.PathLike,
) -> store_lib.Store:
  """Writes the store, or opens the one that is there if it is the same.

  Raises:
    ValueError: if out_dir holds something else, or a source cannot be read.
  """
  out = epath.Path(out_dir)
  settings = _settings(config, tokenizer_config)
  if (out / store_lib.MANIFEST).exists():
    return _reuse(out, settings)
  if out.exists() and any(out.iterdir()):
    raise ValueError(
      f"{out} is not empty and holds no {store_lib.MANIFEST}: set data.path to"
      " a new folder."
    )
  started = time.monotonic()
  tokenizer = tokenizer_lib.train(
    tokenizer_config, sample(config, tokenizer_config.sample_bytes)
  )
  logging.info(
    "tokenizer %s: %d ids, %.1f s",
    tokenizer.fingerprint[:12],
    tokenizer.vocab_size,
    time.monotonic() - started,
  )
  # Unique, so that two runs at once do not write into one folder.
  scratch = out.parent / f".{out.name}.{os.uname().nodename}.{os.getpid()}"
  try:
    tokenizer.save(scratch)
    entries = _write_sources(config, tokenizer, scratch)
    manifest = {
      "format": store_lib.FORMAT,
      "tokenizer": tokenizer.fingerprint,
      "vocab_size": tokenizer.vocab_size,
      "settings": settings,
      "sources": entries,
    }
    (scratch / store_lib.MANIFEST).write_text(json.dumps(manifest, indent=2))
    try:
      scratch.rename(out)
    except OSError:  # another run was faster
      return _reuse(out, settings)
  finally:
    if scratch.exists():
      scratch.rmtree()
  return store_lib.Store(out)


def sample(config: Config, n_bytes: int) -> Iterator[str]:
  """Yields about `n_bytes` of the train split's text, whole documents.

  Those with the smallest hash: any document may be among them wherever it
  stands, and the same ones are in every order of reading.
  """
  kept: list[tuple[float, int, int, str]] = []  # a heap, largest hash first
  total = 0
  for number, document in enumerate(_readable(config)):
    place = _place(document.id)
    if not document.text or place < config.heldout_fraction:
      continue
    text = document.text[:n_bytes]
    size = len(text.encode())
    heapq.heappush(kept, (-place, number, size, text))
    total += size
    while total - kept[0][2] >= n_bytes:
      total -= heapq.heappop(kept)[2]
  for *_, text in sorted(kept, reverse=True):
    yield text


def _readable(config: Config) -> Iterator[sources_lib.Document]:
  """The documents of all sources that are not stores."""
  for source in config.sources:
    if not _is_store(source):
      progress = _Progress(f"{source}, to train the tokenizer", source)
      yield from sources_lib.documents(source, config.text_key, progress.read)


def _write_sources(
  config: Config, tokenizer: tokenizer_lib.Tokenizer, out: epath.Path
) -> list[dict[str, Any]]:
  entries = []
  for i, source in enumerate(config.sources):
    if _is_store(source):
      entry = _refer(source, tokenizer)
    else:
      entry = _tokenize(config, source, tokenizer, out, f"{i:02d}")
    if not entry["train"]["n_documents"]:
      raise ValueError(
        f"data.sources: {source!r} gives no document to train on"
        f" ({entry['heldout']['n_documents']} are held out)."
      )
    entries.append({"name": source} | entry)
  n_heldout = sum(entry["heldout"]["n_documents"] for entry in entries)
  if config.heldout_fraction and not n_heldout:
    raise ValueError(
      f"data.heldout_fraction={config.heldout_fraction} holds out none of"
      f" {sum(e['train']['n_documents'] for e in entries)} documents. Raise it,"
      " set it to 0, or give more and smaller documents."
    )
  return entries


def _tokenize(
  config: Config,
  source: str,
  tokenizer: tokenizer_lib.Tokenizer,
  out: epath.Path,
  prefix: str,
) -> dict[str, Any]:
  """Writes the shards of one source; returns its entry in the manifest."""
  writers = {
    split: store_lib.Writer(
      out, f"{split}/{prefix}", tokenizer.vocab_size, config.shard_bytes
    )
    for split in store_lib.SPLITS
  }
  progress = _Progress(source, source)
  n_empty = 0
  for batch in _batches(
    sources_lib.documents(source, config.text_key, progress.read)
  ):
    for document, ids in zip(
      batch,
      tokenizer.encode_batch([document.text for document in batch]),
      strict=True,
    ):
      if not ids:
        n_empty += 1
        continue
      heldout = _place(document.id) < config.heldout_fraction
      writers["heldout" if heldout else "train"].add(
        document.id, ids, len(document.text.encode())
      )
  entry = {split: writer.close() for split, writer in writers.items()}
  progress.done(entry, n_empty)
  return entry | {"n_empty": n_empty}


def _batches(
  documents: Iterator[sources_lib.Document],
) -> Iterator[list[sources_lib.Document]]:
  batch, size = [], 0
  for document in documents:
    batch.append(document)
    size += len(document.text)
    if size >= BATCH_BYTES:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


class _Progress:
  """Says how far a source is read, at most once in REPORT_SECONDS."""

  def __init__(self, title: str, source: str):
    self._title, self._n_bytes = title, 0
    self._total_bytes = sources_lib.size_bytes(source)
    self._started = self._reported = time.monotonic()

  def read(self, n_bytes: int) -> None:
    self._n_bytes += n_bytes
    now = time.monotonic()
    if now - self._reported < REPORT_SECONDS:
      return
    self._reported, seconds = now, now - self._started
    logging.info(
      "%s: %.0f %% read, %.1f MB/s, %.0f s left",
      self._title,
      100 * self._n_bytes / self._total_bytes,
      self._n_bytes / seconds / 1e6,
      seconds * (self._total_bytes / self._n_bytes - 1),
    )

  def done(self, entry: dict[str, Any], n_empty: int) -> None:
    train, heldout = (entry[split] for split in store_lib.SPLITS)
    logging.info(
      "%s: %d documents to train on, %d held out, %d empty ones left out;"
      " %.1f M tokens, %.2f bytes a token, %.1f s",
      self._title,
      train["n_documents"],
      heldout["n_documents"],
      n_empty,
      (train["n_tokens"] + heldout["n_tokens"]) / 1e6,
      (train["n_bytes"] + heldout["n_bytes"])
      / max(train["n_tokens"] + heldout["n_tokens"], 1),
      time.monotonic() - self._started,
    )


def _is_store(source: str) -> bool:
  return (epath.Path(source) / store_lib.MANIFEST).exists()


def _refer(source: str, tokenizer: tokenizer_lib.Tokenizer) -> dict[str, Any]:
  """The entry of a store that was prepared before: its shards, in place."""
  other = store_lib.Store(source)
  if other.tokenizer.fingerprint != tokenizer.fingerprint:
    raise ValueError(
      f"data.sources: {source!r} was prepared with the tokenizer"
      f" {other.tokenizer.fingerprint[:12]}, this store has"
      f' {tokenizer.fingerprint[:12]}. Set tokenizer.kind="saved" and'
      f" tokenizer.path={source!r}."
    )
  entry = {}
  for split in store_lib.SPLITS:
    corpora = getattr(other, split)
    entry[split] = {
      count: sum(getattr(corpus, count) for corpus in corpora)
      for count in ("n_documents", "n_tokens", "n_bytes")
    }
    entry[split]["shards"] = [
      dataclasses.asdict(shard)
      | {"path": os.fspath(corpus.path_of(shard).resolve())}
      for corpus in corpora
      for shard in corpus.shards
    ]
  return entry


def _settings(
  config: Config, tokenizer_config: tokenizer_lib.Config
) -> dict[str, Any]:
  """What the content of a store depends on, as plain JSON."""
  data = dataclasses.asdict(config)
  for elsewhere in ("weights", "path"):
    del data[elsewhere]
  tokenizer = dataclasses.asdict(tokenizer_config)
  if tokenizer_config.kind == "saved":
    # Not where it lies but what it is.
    del tokenizer["path"], tokenizer["sample_bytes"]
    tokenizer["fingerprint"] = tokenizer_lib.load(
      tokenizer_config.path
    ).fingerprint
  settings = {"data": data, "tokenizer": tokenizer}
  return json.loads(json.dumps(settings))


def _reuse(out: epath.Path, settings: dict[str, Any]) -> store_lib.Store:
  store = store_lib.Store(out)
  found = store.manifest["settings"]
  differences = [
    f"{section}.{key} was {found[section].get(key)!r}, is"
    f" {settings[section].get(key)!r}"
    for section in settings
    for key in sorted(settings[section] | found[section])
    if found[section].get(key) != settings[section].get(key)
  ]
  if differences:
    raise ValueError(
      f"{out} was prepared otherwise: {'; '.join(differences)}. Set data.path"
      " to a new folder, or remove this one to prepare it again."
    )
  n_tokens = sum(corpus.n_tokens for corpus in store.train)
  logging.info(
    "reusing the store %s: same settings, tokenizer %s, %.1f M tokens",
    out,
    store.tokenizer.fingerprint[:12],
    n_tokens / 1e6,
  )
  return store


def _place(name: str) -> float:
  """A document's place in [0, 1), by its name: low ones are held out."""
  digest = hashlib.sha256(name.encode()).digest()
  return int.from_bytes(digest[:8]) / 2**64


def main(config: door.Config, workdir: epath.Path) -> None:
  """Prepares the store, or reads the one that is there against its digests."""
  out = folder(config.data, workdir)
  prepare(config.data, config.tokenizer, out).verify()
  print(f"{out} is ready: look at it with `python -m data.show`.")


if __name__ == "__main__":
  door.run(main, SECTIONS)
