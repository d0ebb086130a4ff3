"""Damages what a run has written: is anything wrong ever taken for right?

    python -m benchmarks.faults.corrupt --n 10000

A tiny run leaves two checkpoints, a store and a config.json. One file of them
gets a flipped bit, a cut, a page of zeros, another file's content, or is
removed; then it is read as the next life of the run reads it, and what comes
out is compared, to the last bit, with what was there before:

  checkpoint   resumed from (the newest; it should fall back), and loaded, as
               evaluation and generation do
  store        opened and read from the first document to the last
  config       read, and settled with the checkpoint

The last line is JSON: cases, silent (wrong and not a word of it: must be 0),
crashed (a traceback in place of a word: must be 0), checkpoint_cases, recovered
(those that went on from the older step: all in which the damage was seen),
harmless (nothing that is read has changed), and counts of each place and kind.
safetensors files have no reader here yet.
"""

import collections
import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from benchmarks.faults import dose, runs
from configs import door
from data import store
from data import tokenizer as tokenizers
from models import checkpoint, families
from train import pretrain
from train.core import checkpointing, optim, schedule, setup, state

PAGE_BYTES = 4096
OLDER, NEWER = 2, 4  # steps of the checkpoints
# How often each place is hurt; a checkpoint has the most to lose.
PLACES = {
  "params": 3, "state": 3, "data": 2, "config.json": 2, "card.json": 1,
  "tokenizer": 2, "manifest.json": 4, "store": 5, "run config": 3,
}  # fmt: skip

Damage = Callable[[bytes, random.Random, list[epath.Path]], bytes | None]


def flip(raw: bytes, rng: random.Random, _: list[epath.Path]) -> bytes:
  """Another bit somewhere."""
  i = rng.randrange(8 * len(raw))
  hurt = bytearray(raw)
  hurt[i // 8] ^= 1 << i % 8
  return bytes(hurt)


def cut(raw: bytes, rng: random.Random, _: list[epath.Path]) -> bytes:
  """The end is lost, or all of it."""
  return raw[: rng.randrange(len(raw))]


def blank(raw: bytes, rng: random.Random, _: list[epath.Path]) -> bytes:
  """A page of zeros, as a disk gives back what it lost."""
  start = PAGE_BYTES * rng.randrange(-(-len(raw) // PAGE_BYTES))
  end = min(start + PAGE_BYTES, len(raw))
  return raw[:start] + bytes(end - start) + raw[end:]


def swap(raw: bytes, rng: random.Random, others: list[epath.Path]) -> bytes:
  """The content of another file of its kind, whole and right in itself."""
  del raw
  return rng.choice(others).read_bytes()


def remove(raw: bytes, rng: random.Random, _: list[epath.Path]) -> None:
  """The file is gone."""
  del raw, rng


DAMAGES = (flip, flip, flip, cut, blank, swap, remove)


class Scene:
  """A run that has ended, and what it must read again.

  Args:
    folder: to run in.
  """

  def __init__(self, folder: epath.Path):
    saving = {"every_steps": 2, "keep_last": 2}
    self.config = runs.page(folder, train={"steps": NEWER}, checkpoint=saving)
    self.workdir = folder / "run"
    pretrain.main(self.config, self.workdir)
    self.store = folder / "store"
    self.newer, self.older = (
      self.workdir / "checkpoints" / str(step) for step in (NEWER, OLDER)
    )
    # Another run's, to be swapped in: whole, and right in itself.
    self.foreign = folder / "foreign" / "config.json"
    self.foreign.parent.mkdir()
    other = runs.page(folder, optim={"lr": 0.02}).to_dict()
    door.write(self.foreign, other)
    self._files = {
      str(path.relative_to(folder)): path.read_bytes()
      for path in _files(self.workdir / "checkpoints") + _files(self.store)
    }
    self._folder = folder
    layout = setup.begin(self.config, self.workdir).layout
    factor = schedule.make(self.config.schedule, NEWER)
    model = self.config.model
    optimizer = optim.make(self.config.optim, factor, families.axes(model))
    self._wanted = state.abstract(model, optimizer, layout)
    self._resumed = {NEWER: self.resume()}
    with hurt(self.newer / "card.json", None):
      self._resumed[OLDER] = self.resume()
    self._loaded, self._read = self.load(), self.read()

  def mend(self) -> None:
    """Puts back what was swept as a checkpoint that is none."""
    for name, raw in self._files.items():
      path = self._folder / name
      if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)

  def resume(self) -> str:
    """Digest of what a run would go on from: arrays, place, loop."""
    with checkpointing.Checkpoints(
      self.workdir, self.config.checkpoint, {}, lambda path: None
    ) as checkpoints:
      found = checkpoints.restore(self._wanted, lambda line: None)
    return _digest(found)

  def load(self) -> str:
    """Digest of what evaluation and generation use."""
    model, params = checkpoint.load(self.newer)
    tokenizer = tokenizers.load(self.newer)
    return _digest((repr(model), params, tokenizer.fingerprint))

  def read(self) -> str:
    """Digest of every document of the store."""
    store._read_index.cache_clear()  # a new life has read nothing yet
    opened = store.Store(self.store)
    corpora = opened.train + opened.heldout
    ids = [corpus[i] for corpus in corpora for i in range(len(corpus))]
    shape = [(corpus.fingerprint, len(corpus)) for corpus in corpora]
    indices = [(corpus.lengths, corpus.name_of(0)) for corpus in corpora]
    return _digest((ids, indices, repr(shape), opened.tokenizer.fingerprint))

  def settle(self) -> str:
    """What comes of going on without --config."""
    path = self.workdir / "config.json"
    config = door.load(path, pretrain.SECTIONS)
    said: list[str] = []
    setup.settle(config, self.workdir, pretrain.SECTIONS, said.append)
    if config == self.config:
      return "as it was"
    return "said" if said else "nothing"

  def judge(self, place: str) -> set[str]:
    """What the readers of a place make of it now."""
    if place == "store":
      return {_outcome(self.read, {self._read: "harmless"})}
    if place == "run config":
      return {_outcome(self.settle, {"as it was": "harmless", "said": "told"})}
    steps = {
      self._resumed[OLDER]: "recovered",
      self._resumed[NEWER]: "harmless",
    }
    return {
      _outcome(self.resume, steps),
      _outcome(self.load, {self._loaded: "harmless"}),
    }

  def choose(
    self, place: str, rng: random.Random
  ) -> tuple[epath.Path, list[epath.Path]]:
    """A file of a place, and others that might take its place."""
    if place == "run config":
      return self.workdir / "config.json", [self.foreign]
    if place == "store":
      files = _files(self.store)
      return rng.choice(files), files
    files = [
      path
      for path in _files(self.newer)
      if str(path.relative_to(self.newer)).startswith(place)
    ]
    path = rng.choice(files)
    before = self.older / path.relative_to(self.newer)
    others = files if place in ("params", "state") else []
    return path, [*others, *([before] if before.exists() else [])]


def _outcome(reader: Callable[[], str], known: dict[str, str]) -> str:
  try:
    return known.get(reader(), "silent")
  except (ValueError, OSError):
    return "refused"
  except Exception as error:  # a person would see a traceback
    return f"crashed: {error!r}"


def _files(folder: epath.Path) -> list[epath.Path]:
  found = []
  for path in sorted(folder.iterdir()):
    found += _files(path) if path.is_dir() else [path]
  return [path for path in found if path.is_dir() or path.stat().length]


def _digest(tree: Any) -> str:
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    is_array = isinstance(leaf, (jax.Array, np.ndarray))
    found.update(
      np.asarray(leaf).tobytes() if is_array else repr(leaf).encode()
    )
  return found.hexdigest()


@contextlib.contextmanager
def hurt(path: epath.Path, raw: bytes | None) -> Iterator[None]:
  """Within: a file has another content, or is gone."""
  before = path.read_bytes()
  path.unlink()
  if raw is not None:
    path.write_bytes(raw)
  try:
    yield
  finally:
    if path.parent.exists():
      path.write_bytes(before)


def corrupt(n: int, folder: epath.Path) -> dict[str, Any]:
  """Makes a scene and hurts it n times; returns the figures."""
  logging.set_verbosity(logging.WARNING)
  return hurt_often(n, Scene(folder))


def hurt_often(n: int, scene: Scene, seed: int = 0) -> dict[str, Any]:
  """Hurts n times; returns the figures, and up to ten that were not seen."""
  rng = random.Random(seed)
  outcomes: dict[str, collections.Counter] = {}
  total, wrong = collections.Counter(), []
  while total["cases"] < n:
    (place,) = rng.choices(list(PLACES), PLACES.values())
    damage = rng.choice(DAMAGES)
    path, others = scene.choose(place, rng)
    before = path.read_bytes()
    if damage is swap and not others:
      continue
    raw = damage(before, rng, others)
    if raw == before:  # a page that was all zeros, a file that is like another
      continue
    with hurt(path, raw):
      found = scene.judge(place)
    scene.mend()
    total["cases"] += 1
    if place not in ("store", "run config"):
      total["checkpoint_cases"] += 1
      total["recovered"] += found == {"recovered", "refused"}
    total["harmless"] += found == {"harmless"}
    total["silent"] += "silent" in found
    total["crashed"] += any(one.startswith("crashed") for one in found)
    kind = f"{place}, {damage.__name__}"
    outcome = " and ".join(sorted(found))
    outcomes.setdefault(kind, collections.Counter())[outcome] += 1
    if not found <= {"recovered", "refused", "harmless", "told"}:
      wrong.append(f"{kind}: {path.name} {outcome}")
  names = (
    "cases", "silent", "crashed", "checkpoint_cases", "recovered", "harmless",
  )  # fmt: skip
  return {
    **{name: total[name] for name in names},
    "kinds": {kind: outcomes[kind] for kind in sorted(outcomes)},
    "wrong": wrong[:10],
  }


def is_kept(found: dict[str, Any]) -> bool:
  """Whether the promise holds."""
  return not found["silent"] and not found["crashed"]


if __name__ == "__main__":
  dose.run(corrupt, n=10_000, is_kept=is_kept)
