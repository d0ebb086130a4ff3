"""Documents that hold a piece of a benchmark, found by n-gram overlap.

As in GPT-3 (2005.14165, appendix C): a document that shares n words in a row
with an item of a benchmark is a leak. Case, punctuation and whitespace do not
count: both sides are compared as the letters and digits alone, end to end, so
that neither "don't" against "dont" nor "a,b" against "a, b" hides one. A
Chinese or Japanese character is a word.

An item of fewer than n words counts as a whole, down to 8 words, below which
chance would find it everywhere: a shorter one makes a leak only of a document
that is that item and nothing else.

The index is of the benchmarks' size. A document is looked through by a rolling
hash, and what the hash finds is compared letter by letter.
"""

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt64

from configs import fields
from configs.ranges import Count
from data import sources

MIN_WORDS = 8
# A gram is looked up by its beginning, of the longest of these that fits.
ANCHORS = (32, 16, 8, 1)
WINDOW = 1 << 18  # letters that are hashed at once
BASE = 0x9E3779B97F4A7C15
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{CJK}]|(?:(?![{CJK}])[^\W_])+")
_BETWEEN = re.compile(r"[\W_]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which benchmarks must not be in the data."""

  sources: tuple[str, ...] = ()  # of the benchmarks' texts; () looks for none
  text_keys: tuple[str, ...] = ("text",)  # each key's text is an item
  n_words: Count = 13  # in a row that make a leak; GPT-3's

  def __post_init__(self):
    fields.check(self)
    if not self.text_keys:
      raise ValueError("decontaminate.text_keys is empty: name a key.")


class Leak(NamedTuple):
  """What a document shares with a benchmark."""

  item: str  # "gsm8k.jsonl:12"
  shared: str  # its letters and digits


class Index:
  """The n-grams of benchmarks, and what of them a text holds."""

  def __init__(self, config: Config):
    """Reads the benchmarks.

    Raises:
      ValueError: one of them cannot be read as a whole.
    """
    self._alone: dict[str, str] = {}  # letters of a short item -> the item
    self._items: list[tuple[str, str]] = []  # name and letters of the others
    self._longest = 1
    tables: dict[int, tuple[list, list]] = {size: ([], []) for size in ANCHORS}
    for name, text in _items(config):
      found = _WORD.findall(_folded(text))
      letters = "".join(found)
      n_words = min(config.n_words, len(found))
      if n_words < min(config.n_words, MIN_WORDS):
        self._alone.setdefault(letters, name)
        continue
      hashes = _hashes(letters)
      borders = list(itertools.accumulate(map(len, found), initial=0))
      for start, end in zip(borders, borders[n_words:], strict=False):
        size = next(size for size in ANCHORS if size <= end - start)
        anchors, grams = tables[size]
        anchors.append(hashes[size][start])
        grams.append((len(self._items), start, end))
        self._longest = max(self._longest, end - start)
      self._items.append((name, letters))
    self._tables = {
      size: _table(*table) for size, table in tables.items() if table[0]
    }

  def find(self, text: str) -> Leak | None:
    """Finds the first piece of a benchmark in a text, if there is one."""
    letters = _BETWEEN.sub("", _folded(text))
    if letters in self._alone:
      return Leak(self._alone[letters], letters)
    for start in range(0, len(letters), WINDOW):
      part = letters[start : start + WINDOW + self._longest - 1]
      hashes = _hashes(part)
      for size, table in self._tables.items():
        if size in hashes and (leak := self._search(part, hashes[size], table)):
          return leak
    return None

  def _search(
    self, part: str, hashes: UInt64[np.ndarray, "_"], table: "_Table"
  ) -> Leak | None:
    places = np.flatnonzero(table.sieve[hashes >> table.shift])
    firsts = np.searchsorted(table.hashes, hashes[places])
    found = table.hashes.take(firsts, mode="clip") == hashes[places]
    places, firsts = places[found], firsts[found]
    lasts = np.searchsorted(table.hashes, hashes[places], "right")
    for place, first, last in zip(places, firsts, lasts, strict=True):
      for item, start, end in table.grams[first:last]:
        name, letters = self._items[item]
        if part.startswith(letters[start:end], place):
          return Leak(name, letters[start:end])
    return None


class _Table(NamedTuple):
  """Grams by the hash of their beginnings, which have one length."""

  hashes: np.ndarray  # sorted
  grams: np.ndarray  # of each hash: item, start, end
  sieve: np.ndarray  # whether any hash begins with these bits
  shift: np.uint64  # leaves those bits of a hash


def _table(anchors: list, grams: list[tuple[int, int, int]]) -> _Table:
  hashes = np.array(anchors, np.uint64)
  order = np.argsort(hashes, kind="stable")
  n_bits = (16 * len(hashes)).bit_length()  # 1 place in 16 to 32 is taken
  shift = np.uint64(64 - n_bits)
  sieve = np.zeros(1 << n_bits, bool)
  sieve[hashes >> shift] = True
  return _Table(hashes[order], np.array(grams, np.int32)[order], sieve, shift)


def _hashes(letters: str) -> dict[int, UInt64[np.ndarray, "_"]]:
  """Hashes each run of 1, 8, 16 and 32 letters, by where it starts."""
  codes = np.frombuffer(letters.encode("utf-32-le"), np.uint32)
  found, size = {}, 1
  hashes, power = codes.astype(np.uint64) * np.uint64(BASE), BASE
  while len(hashes):
    found[size] = hashes
    if size == ANCHORS[0]:
      break
    # Modulo 2**64: twice as long, from two halves.
    hashes = hashes[:-size] * np.uint64(power) + hashes[size:]
    size, power = 2 * size, power * power % 2**64
  return found


def _folded(text: str) -> str:
  if text.isascii():
    return text.lower()
  return unicodedata.normalize("NFKC", text).casefold()


def _items(config: Config) -> Iterator[tuple[str, str]]:
  for source, key in itertools.product(config.sources, config.text_keys):
    for _, item in sources.read(source, sources.Reading(text_key=key)):
      if isinstance(item, sources.Document):
        yield item.id, item.text
      elif item.kind not in ("empty", sources.EMPTY_FILE):
        raise ValueError(
          f"data.decontaminate: {item.where}: {item.reason}. What cannot be"
          " read cannot be looked for: mend it, or set"
          " data.decontaminate.text_keys."
        )
