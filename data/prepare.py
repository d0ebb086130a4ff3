"""Documents to a store: trains the tokenizer, splits, tokenizes, writes shards.

    python -m data.prepare --config=configs/quickstart.py --workdir=runs/quick

A document is held out by the hash of its name: the split depends neither on the
order of the documents nor on what else is in the corpus. The tokenizer is
trained on documents of the train split only.

Several sources are kept apart in one store, so that `data.weights` can mix them
later. A source may also be a folder that was prepared before: its shards are
referred to where they lie, with the split they have, and its tokenizer must be
this store's (`tokenizer.kind="saved"`, `tokenizer.path` that folder).

The folder appears under its name when it is whole, never before. Killed at any
moment and started again, it goes on where it was and ends at the same bytes
(data/journal.py). What cannot be read is left out, counted and listed up to
`data.max_bad_fraction` (data/quarantine.py); so are documents that hold pieces
of the benchmarks of `data.decontaminate` (data/decontaminate.py).
"""

import contextlib
import dataclasses
import functools
import hashlib
import heapq
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from configs import door, fields
from configs.ranges import Bytes, Fraction, Positive, Share
from data import decontaminate as decontaminate_lib
from data import journal as journal_lib
from data import shards, sources
from data import store as store_lib
from data import tokenizer as tokenizer_lib
from data.chat import encoder
from data.chat import formats as formats_lib
from data.nearby import copy_file, file_sha256, is_remote
from data.quarantine import Quarantine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which documents to prepare, and where the store lies."""

  sources: tuple[str, ...] = ("stdlib",)  # see data/sources/__init__.py
  weights: tuple[Positive, ...] = ()  # shares of tokens; () is as they are
  text_key: str = "text"  # of a JSON object; the column of a table
  # What the columns of records mean: one for all sources, or one each.
  formats: tuple[formats_lib.Format, ...] = ("text",)
  chat: encoder.Config = encoder.Config()  # for all formats but text
  heldout_fraction: Fraction = 0.02  # of the documents
  shard_bytes: Bytes = 256 << 20  # of ids in a shard, before compression
  path: str = ""  # the store's folder; "" is WORKDIR/store
  # Longer texts are cut at line ends, longer lines and records are bad.
  max_document_bytes: Bytes = 1 << 24
  # Bad documents, and the bytes of damaged files, that a source may have.
  max_bad_fraction: Share = 0.001
  decontaminate: decontaminate_lib.Config = decontaminate_lib.Config()

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
    if self.chat.apart and not {*self.formats} <= formats_lib.APART:
      raise ValueError(
        f"data.formats={self.formats} with data.chat.apart=True: a text to read "
        f"and one to write have {', '.join(sorted(formats_lib.APART))}."
      )
    if len(self.formats) not in (1, len(self.sources)):
      raise ValueError(
        f"data.formats={self.formats} has {len(self.formats)} formats for"
        f" {len(self.sources)} sources: give one for all, or one each."
      )

  def form(self, source: str) -> formats_lib.Format:
    """The format of a source's records."""
    given = dict(zip(self.sources, self.formats, strict=False))
    return given.get(source, self.formats[0])


# Settings that the content of a store does not depend on.
ELSEWHERE = ("weights", "path", "max_bad_fraction")
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
    ValueError: if out_dir holds something else, a source cannot be read, or too
      much of one is bad.
  """
  out = epath.Path(out_dir)
  settings = _settings(config, tokenizer_config)
  if (out / store_lib.MANIFEST).exists() and journal_lib.is_idle(out):
    return _reuse(out, settings)
  with journal_lib.held(out) as journal:
    if (out / store_lib.MANIFEST).exists():
      journal.sweep()  # another process was faster, or died at the very end
      return _reuse(out, settings)
    _check_free(out)
    journal.begin(
      {
        "settings": settings,
        "inputs": _inputs(config),
        "format": store_lib.FORMAT,
      },
      _is_sound,
    )
    tokenizer = _tokenizer(config, tokenizer_config, journal)
    entries = _write_sources(config, tokenizer, journal)
    folder = epath.Path(journal.folder)
    content = {
      "tokenizer": tokenizer.fingerprint,
      "vocab_size": tokenizer.vocab_size,
      "settings": settings,
      "sources": entries,
      "files": {
        name: file_sha256(folder / name)
        for name in shards.LISTINGS
        if (folder / name).exists()
      },
    }
    store_lib.write_manifest(folder, content)
    _publish(journal.folder, out)
  return store_lib.Store(out)


def _is_sound(entry: dict[str, Any], folder: pathlib.Path) -> bool:
  """Whether what the journal says is finished is in the work's folder."""
  if "tokenizer" not in entry:
    return shards.is_sound(entry, folder)
  try:
    return tokenizer_lib.load(folder).fingerprint == entry["tokenizer"]
  except Exception:  # any kind of damage: it is trained again
    return False


def _check_free(out: epath.Path) -> None:
  """Refuses a folder that holds what is not ours."""
  ours = {"tokenizer", *store_lib.SPLITS, *shards.LISTINGS}
  found = [path.name for path in out.iterdir()] if out.exists() else []
  # A store that goes far away is copied there file by file, maybe in vain.
  if is_remote(out):
    found = [name for name in found if not {name, name.split(".")[0]} & ours]
  if found:
    raise ValueError(
      f"{out} is not empty and holds no {store_lib.MANIFEST}: set data.path to"
      " a new folder."
    )


def _tokenizer(
  config: Config,
  tokenizer_config: tokenizer_lib.Config,
  journal: journal_lib.Journal,
) -> tokenizer_lib.Tokenizer:
  """Trains the tokenizer, or takes the one that a killed work has trained."""
  if journal.entries:  # it comes first
    return tokenizer_lib.load(journal.folder)
  started = time.monotonic()
  with contextlib.closing(
    sample(config, tokenizer_config.sample_bytes)
  ) as texts:
    tokenizer = tokenizer_lib.train(tokenizer_config, texts)
  speaks = formats_lib.SPOKEN & {*config.formats} and not config.chat.apart
  if config.chat.template or speaks:
    tokenizer = encoder.talking(config.chat, tokenizer)
  tokenizer.save(journal.folder)
  journal.append({"tokenizer": tokenizer.fingerprint})
  logging.info(
    "tokenizer %s: %d ids, %.1f s",
    tokenizer.fingerprint[:12],
    tokenizer.vocab_size,
    time.monotonic() - started,
  )
  return tokenizer


def sample(config: Config, n_bytes: int) -> Iterator[str]:
  """Yields about `n_bytes` of the train split's text, whole documents.

  Those with the smallest hash: any document may be among them wherever it
  stands, and the same ones are in every order of reading.
  """
  kept: list[tuple[float, int, int, str]] = []  # a heap, largest hash first
  total = 0
  for number, document in enumerate(_readable(config)):
    place = shards.place(document.id)
    if place < config.heldout_fraction:
      continue
    text = document.text[:n_bytes]
    size = len(text.encode())
    heapq.heappush(kept, (-place, number, size, text))
    total += size
    while total - kept[0][2] >= n_bytes:
      total -= heapq.heappop(kept)[2]
  for *_, text in sorted(kept, reverse=True):
    yield text


def _readable(config: Config) -> Iterator[sources.Document]:
  """The documents of all sources that are not stores."""
  for source in config.sources:
    if _is_store(source):
      continue
    title = f"{source}, to train the tokenizer"
    quarantine = Quarantine(source, config.max_bad_fraction, title=title)
    reading = _reading(config, source, on_read=quarantine.read)
    for _, item in sources.read(source, reading):
      quarantine.take(item)
      if isinstance(item, sources.Document):
        yield item
    quarantine.close()


def _reading(config: Config, source: str, **more) -> sources.Reading:
  form = config.form(source)
  columns = (
    formats_lib.columns(form, config.chat.columns) if form != "text" else ()
  )
  return sources.Reading(
    text_key=config.text_key,
    columns=columns,
    max_bytes=config.max_document_bytes,
    **more,
  )


def _write_sources(
  config: Config,
  tokenizer: tokenizer_lib.Tokenizer,
  journal: journal_lib.Journal,
) -> list[dict[str, Any]]:
  leaks = None
  if config.decontaminate.sources:
    leaks = decontaminate_lib.Index(config.decontaminate)
  recipe = functools.partial(
    shards.Recipe,
    heldout_fraction=config.heldout_fraction,
    max_bad_fraction=config.max_bad_fraction,
    shard_bytes=config.shard_bytes,
    tokenizer=tokenizer,
    encoder=encoder.Encoder(config.chat, tokenizer),
    leaks=leaks,
  )
  entries = []
  for i, source in enumerate(config.sources):
    if _is_store(source):
      entry = _refer(config, source, tokenizer)
    else:
      started = time.monotonic()
      how = recipe(reading=_reading(config, source), form=config.form(source))
      entry = shards.write(source, i, how, journal)
      logging.info(
        "%s: %s", source, _summary(entry, time.monotonic() - started)
      )
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


def _summary(entry: dict[str, Any], seconds: float) -> str:
  """One line on what became of a source."""
  train, heldout = (entry[split] for split in store_lib.SPLITS)
  n_tokens = train["n_tokens"] + heldout["n_tokens"]
  n_bytes = train["n_bytes"] + heldout["n_bytes"]
  kinds = ", ".join(f"{n} {kind}" for kind, n in entry["bad"].items())
  return (
    f"{train['n_documents']} documents to train on,"
    f" {heldout['n_documents']} held out,"
    f" {sum(entry['bad'].values())} left out{f' ({kinds})' if kinds else ''},"
    f" {entry['n_leaks']} leaks; {n_tokens / 1e6:.1f} M tokens,"
    f" {n_bytes / max(n_tokens, 1):.2f} bytes a token, {seconds:.1f} s"
  )


def _publish(folder: pathlib.Path, out: epath.Path) -> None:
  """Makes the folder appear under its name; far away, the manifest last."""
  if not is_remote(out):
    folder.rename(out)
    return
  paths = [path for path in folder.rglob("*") if path.is_file()]
  for path in sorted(paths, key=lambda path: path.name == store_lib.MANIFEST):
    target = out / path.relative_to(folder).as_posix()
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_file(epath.Path(path), target)
  shutil.rmtree(folder)


def _inputs(config: Config) -> str:
  """A digest of which files there are to read, and of their sizes and times."""
  listed = []
  for source in (*config.sources, *config.decontaminate.sources):
    if _is_store(source):
      listed.append(store_lib.read_manifest(epath.Path(source))["sha256"])
      continue
    for name, path, _ in sources.files(source):
      stat = path.stat()
      listed.append([name, stat.length, stat.mtime])
  return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _is_store(source: str) -> bool:
  return (epath.Path(source) / store_lib.MANIFEST).exists()


def _refer(
  config: Config, source: str, tokenizer: tokenizer_lib.Tokenizer
) -> dict[str, Any]:
  """The entry of a store that was prepared before: its shards, in place."""
  other = store_lib.Store(source)
  if other.tokenizer.fingerprint != tokenizer.fingerprint:
    raise ValueError(
      f"data.sources: {source!r} was prepared with the tokenizer"
      f" {other.tokenizer.fingerprint[:12]}, this store has"
      f' {tokenizer.fingerprint[:12]}. Set tokenizer.kind="saved" and'
      f" tokenizer.path={source!r}."
    )
  wanted = fields.plain(config.decontaminate)
  found = other.manifest["settings"]["data"]["decontaminate"]
  if config.decontaminate.sources and found != wanted:
    raise ValueError(
      f"data.sources: {source!r} was prepared with data.decontaminate={found}:"
      " its leaks are not those that are looked for here. Prepare it again with"
      " the same data.decontaminate."
    )
  found = {corpus.form for corpus in other.train}
  if len(found) > 1:
    raise ValueError(
      f"data.sources: {source!r} holds {' and '.join(sorted(found))}: a source"
      " has records of one format. Prepare them apart."
    )
  entry = {"format": found.pop()}
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
  data = fields.plain(config)
  for elsewhere in ELSEWHERE:
    del data[elsewhere]
  tokenizer = fields.plain(tokenizer_config)
  if tokenizer_config.kind == "saved":
    # Not where it lies but what it is.
    del tokenizer["path"], tokenizer["sample_bytes"]
    tokenizer["fingerprint"] = tokenizer_lib.load(
      tokenizer_config.path
    ).fingerprint
  return {"data": data, "tokenizer": tokenizer}


def _reuse(out: epath.Path, settings: dict[str, Any]) -> store_lib.Store:
  store = store_lib.Store(out)
  was = dict(fields.leaves(store.manifest["settings"]))
  now = dict(fields.leaves(settings))
  differences = [
    f"{key} was {was.get(key)!r}, is {now.get(key)!r}"
    for key in sorted(was | now)
    if was.get(key) != now.get(key)
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


def main(config: door.Config, workdir: epath.Path) -> None:
  """Prepares the store, or reads the one that is there against its digests."""
  out = folder(config.data, workdir)
  prepare(config.data, config.tokenizer, out).verify()
  print(f"{out} is ready: look at it with `python -m data.show`.")


if __name__ == "__main__":
  door.run(main, SECTIONS)
