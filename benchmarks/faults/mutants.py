"""Misspells and distorts every setting of every page: is each one refused?

    python -m benchmarks.faults.mutants --n 200000

A mutant is a shipped page with one thing wrong, or two: a letter of a key or of
its section, the type of a value, its range, a choice that there is none of, or
settings that do not fit each other. It is written on the command line or into
the page, for every entrypoint that reads the setting. It is refused if what
runs before any device is touched ends with exit code 2 and a few plain lines;
some are also given to a process of their own.

The last line is JSON: mutants, rejected (must be all), told (those whose
setting is named, must be all), named_first (share of the misspelt keys whose
right one is named, at least 0.97), tracebacks (must be 0), longest_lines (at
most 5), processes, and counts of each class.
"""

import collections
import contextlib
import copy
import dataclasses
import io
import json
import pathlib
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from benchmarks.faults import distort, dose
from configs import door, fields
from data import prepare, show, train_tokenizer
from serve import generate
from train import evaluate, pretrain
from train.core import conflicts

ROOT = pathlib.Path(door.__file__).parent.parent
ENTRYPOINTS = {
  "train.pretrain": pretrain.SECTIONS,
  "train.evaluate": evaluate.SECTIONS,
  "data.prepare": prepare.SECTIONS,
  "data.train_tokenizer": train_tokenizer.SECTIONS,
  "data.show": show.SECTIONS,
  "serve.generate": generate.SECTIONS,
}
Page = dict[str, Any]

_BEGUN = ("quickstart", "bert_tiny", "noise")  # text on, hidden words, pairs


@dataclasses.dataclass(frozen=True)
class Edit:
  """A key gets a value: on the command line, or in the page itself."""

  key: str  # as it is written
  value: Any
  flag: bool
  right: str = ""  # of a misspelt key: the one that was meant


@dataclasses.dataclass(frozen=True)
class Mutant:
  """A page with something wrong, for one entrypoint."""

  kind: str
  entrypoint: str
  page: Page
  edits: tuple[Edit, ...]

  @property
  def distorted(self) -> Page:
    """The page with the edits that are made in it."""
    page = copy.deepcopy(self.page)
    for edit in self.edits:
      if not edit.flag:
        _put(page, edit)
    return page

  @property
  def overrides(self) -> list[str]:
    """The edits that are made on the command line."""
    return [f"{e.key}={e.value}" for e in self.edits if e.flag]

  def is_told(self, verdict: "Verdict") -> bool:
    """Whether a setting that is wrong is named as it was written."""
    several = self.kind in ("pair", "clash")
    edits = self.edits if several else self.edits[-1:]
    names = {edit.key.rpartition(".")[2] for edit in edits}
    return any(name in verdict.said for name in names)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a mutant led to; code 0 is one that was taken for right."""

  code: int
  said: str

  @property
  def named(self) -> str:
    """The key that is named as the nearest."""
    found = re.search(r"the nearest is config\.([\w.]+)", self.said)
    return found[1].rstrip(".") if found else ""


def pages() -> dict[str, Page]:
  """Every page that is shipped, and with each other class the first it fits.

  Pages that begin from a checkpoint, or train other things, are left out.
  """
  found = {}
  for path in sorted((ROOT / "configs").glob("*.py")):
    text = path.read_text()
    if "def get_config(" in text and "python -m train.pretrain" in text:
      found[path.stem] = door.read(path)
  begun = {name: found[name] for name in _BEGUN}
  begun["labels"] = _labelled(found["bert_tiny"])
  for section, choice in pretrain.SECTIONS.items():
    if not isinstance(choice, dict):
      continue
    for name, cls in choice.items():
      if all(page[section].get("name") != name for page in begun.values()):
        preset = next(iter(fields.presets(cls)), None)
        chosen = {"preset": preset} if preset else distort.least(cls)
        stem, page = _fitting(begun, section, {"name": name, **chosen})
        found[f"{stem} with {name}"] = page
  return found


def _labelled(page: Page) -> Page:
  """An encoder's page, for texts of two classes."""
  page = copy.deepcopy(page)
  page["model"]["heads"] = {"kinds": ("texts",)}
  page["data"] |= {"formats": ("labels",), "chat": {"labels": ("no", "yes")}}
  page["batch"]["packing"] = "whole"
  page["objective"] = {}
  return page


def _fitting(
  begun: dict[str, Page], section: str, chosen: dict
) -> tuple[str, Page]:
  """The first page whose other sections go with one, and that page with it."""
  for stem, page in begun.items():
    page = copy.deepcopy(page)
    ids = {k: v for k, v in page[section].items() if k == "vocab_size"}
    page[section] = {**chosen, **ids}
    with contextlib.suppress(ValueError):
      conflicts.check(door.build(page, pretrain.SECTIONS))
      return stem, page
  raise ValueError(f"{section}={chosen} goes with none of {', '.join(begun)}.")


def mutants(rng: random.Random) -> Iterator[Mutant]:
  """Every mutant with one thing wrong, page by page; then those that clash."""
  for page in pages().values():
    for entrypoint, sections in ENTRYPOINTS.items():
      config = door.build(page, sections)
      make = _Maker(entrypoint, page, config, sections, rng)
      for section, built in config.sections.items():
        for path in distort.leaves(type(built)):
          yield from make.of_leaf(section, path, type(built))
        yield from make.of_section(section)
      yield from make.that_clash()


def pairs(singles: list[Mutant], rng: random.Random) -> Iterator[Mutant]:
  """Endlessly two at once, of one page and one entrypoint."""
  alike = collections.defaultdict(list)
  for single in singles:
    alike[single.entrypoint, id(single.page)].append(single)
  places = [found for found in alike.values() if len(found) > 1]
  while True:
    one, other = rng.sample(rng.choice(places), 2)
    keys = {(edit.right or edit.key).split(".")[0] for edit in one.edits}
    if not keys & {(e.right or e.key).split(".")[0] for e in other.edits}:
      edits = (*one.edits, *other.edits)
      yield Mutant("pair", one.entrypoint, one.page, edits)


@dataclasses.dataclass
class _Maker:
  """Makes the mutants of one page for one entrypoint."""

  entrypoint: str
  page: Page
  config: door.Config
  sections: fields.Sections
  rng: random.Random

  def of_leaf(self, section: str, path: str, cls: type) -> Iterator[Mutant]:
    """Those of one setting."""
    key, hint = f"{section}.{path}", fields.hint_at(cls, path.split("."))
    first = self._base(section, path)
    known = set(distort.every_key(self.sections))
    above, _, last = path.rpartition(".")
    for typo in distort.typos(last, self.rng):
      wrong = ".".join(filter(None, [section, above, typo]))
      if wrong not in known:
        yield from self._misspelt("key", wrong, key, first)
    typo = self.rng.choice(distort.typos(section, self.rng))
    yield from self._misspelt("section", f"{typo}.{path}", key, first)
    for value in distort.of_wrong_type(hint):
      yield self._mutant("type", *first, Edit(key, value, flag=False))
    for text in distort.unreadable(hint):
      yield self._mutant("type", *first, Edit(key, text, flag=True))
    for value in distort.out_of_range(hint):
      shown = value[0] if isinstance(value, tuple) else value
      yield self._mutant("range", *first, Edit(key, value, flag=False))
      yield self._mutant("range", *first, Edit(key, shown, flag=True))
    for value in distort.no_choices(hint, self.rng):
      shown = value[0] if isinstance(value, tuple) else value
      yield self._mutant("choice", *first, Edit(key, value, flag=False))
      yield self._mutant("choice", *first, Edit(key, shown, flag=True))

  def of_section(self, section: str) -> Iterator[Mutant]:
    """Those of a section as a whole: its name, its class, its preset."""
    typo = self.rng.choice(distort.typos(section, self.rng))
    if self.page.get(section):
      yield self._mutant("section", Edit(typo, None, False, right=section))
    yield self._mutant("type", Edit(section, 3, flag=False))
    yield self._mutant("type", Edit(section, 3, flag=True))
    cls = type(self.config.sections[section])
    for key in ("name", "preset"):
      if key == "name" and not isinstance(self.sections[section], dict):
        continue
      if key == "preset" and not fields.presets(cls):
        continue
      right = self.page[section].get(key, "")
      for value in ["nonsense", *distort.typos(right or "tiny", self.rng)]:
        for flag in (False, True):
          yield self._mutant("choice", Edit(f"{section}.{key}", value, flag))

  def that_clash(self) -> Iterator[Mutant]:
    """Those whose settings are each right and do not fit each other."""
    for edits in distort.clashes(self.config):
      made = tuple(Edit(key, value, False) for key, value in edits.items())
      yield self._mutant("clash", *made)

  def _misspelt(self, kind, wrong, key, first) -> Iterator[Mutant]:
    value = dict(fields.leaves(self.config.to_dict())).get(key)
    yield self._mutant(kind, *first, Edit(wrong, 1, True, right=key))
    if kind == "key":  # a section of a page is misspelt in `of_section`
      yield self._mutant(kind, *first, Edit(wrong, value, False, right=key))

  def _base(self, section: str, path: str) -> list[Edit]:
    """What must be there before a field in an absent dataclass is set."""
    nested = path.rpartition(".")[0]
    value = self.config.sections[section]
    cls = type(value)
    if not nested or getattr(value, nested) is not None:
      return []
    inner = fields.dataclass_in(fields.hints_of(cls)[nested])
    return [
      Edit(f"{section}.{nested}.{name}", value, flag=False)
      for name, value in distort.least(inner).items()
      if name != path.rpartition(".")[2]
    ]

  def _mutant(self, kind: str, *edits: Edit) -> Mutant:
    return Mutant(kind, self.entrypoint, self.page, edits)


def _put(page: Page, edit: Edit) -> None:
  """Makes an edit in a page."""
  if edit.right and "." not in edit.key:
    page[edit.key] = page.pop(edit.right)
    return
  if edit.right:
    *above, last = edit.right.split(".")
    _inner(page, above).pop(last, None)
  *above, last = edit.key.split(".")
  _inner(page, above)[last] = edit.value


def _inner(page: Page, path: Iterable[str]) -> dict[str, Any]:
  for name in path:
    if not isinstance(page.get(name), dict):
      page[name] = {}
    page = page[name]
  return page


def judge(mutant: Mutant) -> Verdict:
  """Does what an entrypoint does before it touches a device."""
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said), door.plain_mistakes():
      sections = ENTRYPOINTS[mutant.entrypoint]
      config = door.build(mutant.distorted, sections, mutant.overrides)
      conflicts.check(config)
  except SystemExit as ended:
    return Verdict(ended.code, said.getvalue())
  except Exception as error:  # as a crash would show it
    return Verdict(1, f"Traceback: {type(error).__name__}: {error}")
  return Verdict(0, "")


def live(mutant: Mutant, folder: epath.Path) -> Verdict:
  """The same in a process of its own, through the whole entrypoint."""
  folder.mkdir(parents=True)
  page = folder / "config.json"
  page.write_text(json.dumps(mutant.distorted))
  command = [sys.executable, "-m", mutant.entrypoint]
  command += [f"--config={page}", f"--workdir={folder}"]
  command += [f"--config.{override}" for override in mutant.overrides]
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, timeout=600
  )
  return Verdict(done.returncode, done.stderr)


def run(
  n: int, folder: epath.Path, n_processes: int = 20, seed: int = 0
) -> dict[str, Any]:
  """Judges n mutants, a fifth of them pairs, or all that there are and pairs.

  Returns:
    The figures, and under "accepted" up to ten that were not refused.
  """
  rng = random.Random(seed)
  singles = list(mutants(rng))
  double = pairs(singles, rng)
  rng.shuffle(singles)
  chosen = singles[: n - n // 5]
  chosen += [next(double) for _ in range(len(chosen) // 4)]
  judged = [(mutant, judge(mutant)) for mutant in chosen]
  for i, mutant in enumerate(rng.sample(chosen, n_processes)):
    judged.append((mutant, live(mutant, folder / str(i))))
  made, refused = collections.Counter(), collections.Counter()
  for mutant, verdict in judged:
    made[mutant.kind] += 1
    refused[mutant.kind] += verdict.code == 2
  misspelt = [
    verdict.named == edit.right
    for mutant, verdict in judged
    for edit in mutant.edits[-1:]
    if mutant.kind in ("key", "section")
  ]
  told = [m.is_told(v) for m, v in judged]
  wrong = [
    judged[i]
    for i, (_, verdict) in enumerate(judged)
    if verdict.code != 2 or not told[i]
  ]
  return {
    "mutants": len(judged),
    "rejected": sum(refused.values()),
    "told": sum(told),
    "named_first": round(sum(misspelt) / max(len(misspelt), 1), 4),
    "tracebacks": sum("Traceback" in v.said for _, v in judged),
    "longest_lines": max(len(v.said.splitlines()) for _, v in judged),
    "processes": n_processes,
    "classes": {kind: [refused[kind], made[kind]] for kind in sorted(made)},
    "accepted": [
      f"{m.entrypoint} {m.edits}: {v.code} {v.said[-300:]}"
      for m, v in wrong[:10]
    ],
  }


def is_kept(found: dict[str, Any]) -> bool:
  """Whether the promise holds."""
  return (
    found["rejected"] == found["told"] == found["mutants"]
    and found["named_first"] >= 0.97
    and not found["tracebacks"]
    and found["longest_lines"] <= 5
  )


if __name__ == "__main__":
  dose.run(run, n=200_000, is_kept=is_kept)
