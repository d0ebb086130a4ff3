"""What is hidden of a text, and who has to find it.

spans   runs of tokens become sentinels, which the target spells out: T5,
        arXiv 1910.10683
infill  runs of any length, none too, become one mask each, and sentences come in
        any order; the target is the text: BART, 1910.13461
prefix  the target is how the text goes on: 1910.10683, section 3.2.1
middle  the text in another order, so that who writes on fills a gap; nothing is
        hidden: 2207.14255
ul2     one of seven of these, of spans and prefixes, after an id that says of
        which kind: 2205.05131

Of a pair, an encoder reads the source and a decoder writes the target. A model
of one text reads both in a row; of these it is asked the target only, and sees
the source whole.

All draws come from a generator of numpy's that the caller seeds with the place of
the text, so that a text is hidden alike on every host and after every resume.
Ids with a meaning of their own lie above the tokenizer's: see `Ids`.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import typing
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from configs import fields
from configs.ranges import Fraction, Positive
from data.tokenizer import Tokenizer

N_SENTINELS = 100
ROOM = 16  # tokens of a text that a row has to have room for, or is full
Kind = Literal["spans", "infill", "prefix", "middle", "ul2"]
Array = np.ndarray
_READ = {  # kind -> what it reads, and its value in the paper
  "spans": {"density": 0.15, "mean_span": 3.0},
  "infill": {"density": 0.3, "mean_span": 3.0, "permuted": True},
  "prefix": {},
  "middle": {"share": 0.5, "suffix_first": 0.5},
  "ul2": {},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is hidden, and how much; None is what the kind's paper has."""

  kind: Kind
  density: Fraction | None = None  # of the tokens; spans 0.15, infill 0.3
  mean_span: Positive | None = None  # tokens; spans 3, infill 3 (Poisson)
  permuted: bool | None = None  # whether sentences are; infill True
  share: Fraction | None = None  # of texts in another order; middle 0.5
  suffix_first: Fraction | None = None  # of these, suffix ahead; middle 0.5

  def __post_init__(self):
    fields.check(self)
    for field in dataclasses.fields(self)[1:]:
      if field.name in _READ[self.kind]:
        continue
      if (value := getattr(self, field.name)) is not None:
        readers = [kind for kind, read in _READ.items() if field.name in read]
        raise ValueError(
          f"{field.name}={value} says nothing to kind={self.kind}: leave it "
          f"None, or take {' or '.join(readers)}."
        )
    if self.mean_span is not None and self.mean_span < 1:
      raise ValueError(
        f"mean_span={self.mean_span}: spans are of one token or more, in the "
        "mean; give 1 or more."
      )

  @property
  def numbers(self) -> dict[str, Any]:
    """What the kind reads, with the paper's values where none are given."""
    own = {name: getattr(self, name) for name in _READ[self.kind]}
    paper = _READ[self.kind]
    return {k: paper[k] if v is None else v for k, v in own.items()}


@dataclasses.dataclass(frozen=True)
class Ids:
  """Ids with a meaning, above those of a tokenizer."""

  first: int  # vocab_size of the tokenizer

  @property
  def modes(self) -> dict[str, int]:
    """UL2's: R regular spans, S a text that goes on, X extreme ones."""
    return dict(zip("RSX", range(self.first, self.first + 3), strict=True))

  @property
  def parts(self) -> tuple[int, int, int]:
    """Ahead of the prefix, the suffix and the middle of a text."""
    return self.first + 3, self.first + 4, self.first + 5

  @property
  def mask(self) -> int:
    """In the place of what is hidden."""
    return self.first + 6

  @property
  def sentinels(self) -> range:
    """In the place of the first hidden span, the second, and so on."""
    return range(self.first + 7, self.first + 7 + N_SENTINELS)

  @property
  def end(self) -> int:
    """The ids that a model has to have."""
    return self.sentinels.stop

  def spell(self, i: int) -> str:
    """What an id is called, for people; nothing where the tokenizer knows."""
    names = {self.mask: "mask"} | {n: x for x, n in self.modes.items()}
    names |= dict(zip(self.parts, ("prefix", "suffix", "middle"), strict=True))
    if i in self.sentinels:
      return f"<{i - self.sentinels.start}>"
    return f"<{names[i]}>" if i in names else ""


class Pair(typing.NamedTuple):
  """What is read, and what is asked for."""

  source: Int[Array, "S"]
  target: Int[Array, "T"]
  closed: bool  # the target is whole: EOS comes behind it


# Ways to hide -----------------------------------------------------------------
# Each has sizes(n), the most tokens of source, of target and of both that n tokens
# give, and is called with n >= 2 tokens and a generator.


@dataclasses.dataclass(frozen=True)
class Spans:
  """A share of the tokens, in spans of a mean length, becomes sentinels."""

  density: float
  mean_span: float
  ids: Ids
  mode: str | None = None

  def counts(self, n: int) -> tuple[int, int]:
    """Tokens that are hidden of n, and the spans that they make."""
    hidden = min(max(round(n * self.density), 1), n - 1)
    spans = min(max(round(hidden / self.mean_span), 1), n - hidden)
    return hidden, min(spans, N_SENTINELS)

  def sizes(self, n: int) -> tuple[int, int, int]:
    """As all ways have it."""
    hidden, spans = self.counts(n)
    source, target = n - hidden + spans + bool(self.mode), hidden + spans
    return source, target, source + target

  def __call__(self, tokens: Array, rng: np.random.Generator) -> Pair:
    """Seen and hidden spans in turn, the first one seen."""
    hidden, spans = self.counts(len(tokens))
    lengths = np.stack(
      [
        _partition(len(tokens) - hidden, spans, rng),
        _partition(hidden, spans, rng),
      ],
      axis=1,
    )
    parts = np.split(tokens, lengths.reshape(-1).cumsum()[:-1])
    source, target = _mode(self.mode, self.ids), []
    for i in range(spans):
      sentinel = self.ids.sentinels[i]
      source += [*parts[2 * i], sentinel]
      target += [sentinel, *parts[2 * i + 1]]
    return Pair(_ids(source), _ids(target), True)


def _ids(numbers: Any) -> Int[Array, "T"]:
  return np.array(numbers, np.int32)


def _mode(name: str | None, ids: Ids) -> list[int]:
  return [ids.modes[name]] if name else []


def _partition(total: int, n: int, rng: np.random.Generator) -> Array:
  """Splits a number into n positive ones; all ways are equally likely."""
  borders = rng.choice(total - 1, n - 1, replace=False) + 1
  return np.diff(np.concatenate([[0], np.sort(borders), [total]]))


@dataclasses.dataclass(frozen=True)
class Infill:
  """Spans of Poisson lengths become a mask each; sentences change places."""

  density: float
  mean_span: float
  permuted: bool
  ids: Ids
  ends: Bool[Array, "V"]  # whether an id ends a sentence

  def sizes(self, n: int) -> tuple[int, int, int]:
    """As all ways have it."""
    return n, n, 2 * n

  def __call__(self, tokens: Array, rng: np.random.Generator) -> Pair:
    """Spans start anywhere; one of no tokens is a mask between two."""
    source = self._in_any_order(tokens, rng) if self.permuted else tokens
    n, left = len(source), round(len(source) * self.density)
    lengths = []
    n_more = 0  # masks beyond the tokens that they stand for
    while left > 0:
      length = min(int(rng.poisson(self.mean_span)), left)
      n_more += 1 - length
      if length or n_more <= 0:  # what is read is never longer than the text
        lengths.append(length)
      else:
        n_more -= 1
      left -= length
    return Pair(self._masked(source, lengths, n, rng), tokens, True)

  def _masked(self, source, lengths, n, rng):
    """Spans lie anywhere, in any order, with the seen tokens between them."""
    seen = n - sum(lengths)
    places = np.sort(rng.integers(0, seen + 1, len(lengths)))
    out, at, used = [], 0, 0
    for place, length in zip(places, lengths, strict=True):
      out += [*source[at : at + place - used], self.ids.mask]
      at, used = at + place - used + length, place
    return _ids([*out, *source[at:]])

  def _in_any_order(self, tokens, rng):
    borders = np.flatnonzero(self.ends[tokens]) + 1
    parts = np.split(tokens, borders)
    return np.concatenate([parts[i] for i in rng.permutation(len(parts))])


@dataclasses.dataclass(frozen=True)
class Prefix:
  """A text and how it goes on: a share of it, or cut anywhere."""

  ids: Ids
  share: float | None = None  # of the tokens that are asked for
  mode: str | None = None

  def sizes(self, n: int) -> tuple[int, int, int]:
    """As all ways have it."""
    first = last = self._cut(n)
    if first is None:
      first, last = 1, n - 1
    return last + bool(self.mode), n - first, n + bool(self.mode)

  def _cut(self, n: int) -> int | None:
    if self.share is None:
      return None
    return min(max(n - round(n * self.share), 1), n - 1)

  def __call__(self, tokens: Array, rng: np.random.Generator) -> Pair:
    """Neither part is empty."""
    cut = self._cut(len(tokens))
    cut = rng.integers(1, len(tokens)) if cut is None else cut
    source = _mode(self.mode, self.ids) + [*tokens[:cut]]
    return Pair(_ids(source), tokens[cut:], False)


@dataclasses.dataclass(frozen=True)
class Middle:
  """A text in three parts, the middle one last; of some texts, none is moved."""

  share: float
  suffix_first: float
  ids: Ids

  def sizes(self, n: int) -> tuple[int, int, int]:
    """As all ways have it; all is asked for."""
    return 0, n + 3, n + 3

  def __call__(self, tokens: Array, rng: np.random.Generator) -> Pair:
    """Prefix, suffix, middle; or suffix, prefix, middle."""
    nothing = _ids([])
    if rng.random() >= self.share:
      return Pair(nothing, tokens, False)
    cuts = np.sort(rng.integers(0, len(tokens) + 1, 2))
    prefix, middle, suffix = np.split(tokens, cuts)
    pre, suf, mid = ([i] for i in self.ids.parts)
    if rng.random() < self.suffix_first:
      # The prefix joins the middle, as if the text went on from it.
      order = [pre, suf, suffix, mid, prefix, middle]
    else:
      order = [pre, prefix, suf, suffix, mid, middle]
    return Pair(nothing, _ids(np.concatenate(order)), True)


Way = Spans | Infill | Prefix | Middle


@dataclasses.dataclass(frozen=True)
class Noise:
  """Hides texts in one of some ways, each as likely as the others."""

  ways: tuple[Way, ...]
  paired: bool  # an encoder reads the sources
  made_from: str  # what another noise would have another of

  def draw(
    self,
    tokens: Int[Array, "T"],
    place: tuple[int, ...],
    room: int,
    source_room: int,
  ) -> tuple[Pair, int] | None:
    """Hides as many tokens of a text as there is room for.

    Args:
      tokens: two or more, what is left of a document.
      place: numbers that seed the draw: of no other text.
      room: tokens that a row still has for the target, or for both.
      source_room: tokens that it has for the source of a pair.

    Returns:
      The pair, and of how many tokens it is; None where there is no room for
      ROOM of them.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(place)))
    way = self.ways[int(rng.integers(len(self.ways)))]
    n = self._most(way, len(tokens), room, source_room)
    if n < min(ROOM, len(tokens)):
      return None
    return way(tokens[:n], rng), n

  def _most(self, way: Way, n: int, room: int, source_room: int) -> int:
    """The most tokens, up to n, that surely fit."""

    def is_too_long(n):
      source, target, both = way.sizes(n)
      if self.paired:
        return source + 1 > source_room or target + 1 > room  # EOS, BOS
      return both + 1 > room

    return 1 + bisect.bisect_left(range(2, n + 1), True, key=is_too_long)

  def check(self, length: int, source_length: int) -> None:
    """Checks that every row has room.

    Raises:
      ValueError: it has not.
    """
    for way in self.ways:
      if self._most(way, ROOM, length, source_length) < ROOM:
        raise ValueError(
          f"batch.length={length} and batch.source_length={source_length} have "
          f"no room for {ROOM} tokens of a text that is hidden in part: make "
          "them longer."
        )


def make(config: Config, tokenizer: Tokenizer, paired: bool) -> Noise:
  """The noise that a config asks for.

  Args:
    config: what is hidden.
    tokenizer: of the texts.
    paired: whether an encoder reads the sources.
  """
  ids, numbers = Ids(tokenizer.vocab_size), config.numbers
  if config.kind == "spans":
    ways = (Spans(ids=ids, **numbers),)
  elif config.kind == "infill":
    ways = (Infill(ids=ids, ends=sentence_ends(tokenizer), **numbers),)
  elif config.kind == "prefix":
    ways = (Prefix(ids=ids),)
  elif config.kind == "middle":
    ways = (Middle(ids=ids, **numbers),)
  else:
    ways = (
      Prefix(ids, share=0.25, mode="S"),
      *[Spans(0.15, mean, ids, "R") for mean in (3.0, 8.0)],
      *[Spans(0.5, mean, ids, "X") for mean in (3.0, 8.0, 64.0)],
      Spans(0.15, 64.0, ids, "X"),
    )
  settings = json.dumps([config.kind, numbers, paired, ids.first])
  return Noise(ways, paired, f"{settings} {_sample(ways)}")


def _sample(ways: tuple[Way, ...]) -> str:
  """A digest of what the ways do: a library's other draws are told by it."""
  digest = hashlib.sha256()
  for i, way in enumerate(ways):
    rng = np.random.Generator(np.random.PCG64(i))
    pair = way(np.arange(3, 80, dtype=np.int32), rng)
    digest.update(pair.source.tobytes() + pair.target.tobytes())
  return digest.hexdigest()[:16]


def sentence_ends(tokenizer: Tokenizer) -> Bool[Array, "V"]:
  """Which ids end a sentence: by a full stop and its kin, or by a line's end."""
  return np.array(
    [
      tokenizer.decode([i]).rstrip(" ").endswith((".", "!", "?", "\n"))
      for i in range(tokenizer.vocab_size)
    ]
  )


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
  """The text of ids of which some lie above the tokenizer's."""
  above, plain = Ids(tokenizer.vocab_size), lambda i: i < tokenizer.vocab_size
  return "".join(
    tokenizer.decode(run) if is_plain else "".join(map(above.spell, run))
    for is_plain, run in itertools.groupby(map(int, ids), plain)
  )
