"""Words as their parts: character n-grams that share a table by their hash.

Enriching Word Vectors with Subword Information, arXiv 1607.04606, as its
authors' fastText does it: the same n-grams, hash and buckets.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from configs import fields
from configs.ranges import Count

Array = np.ndarray
NONE = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which n-grams there are, and how many rows they share."""

  shortest: Count = 3  # characters, with the < and > around the word
  longest: Count = 6
  n_buckets: Count = 2_000_000

  def __post_init__(self):
    fields.check(self)
    if self.shortest > self.longest:
      raise ValueError(
        f"subwords.shortest={self.shortest} is more than subwords.longest="
        f"{self.longest}: give at most that."
      )


def fnv1a(raw: bytes) -> int:
  """FNV-1a of 32 bits, in which fastText extends the sign of every byte."""
  value = 2166136261
  for byte in raw:
    value ^= byte if byte < 128 else byte | 0xFFFFFF00
    value = value * 16777619 & 0xFFFFFFFF
  return value


def ngrams(config: Config, word: str) -> list[str]:
  """Those of <word>, from each character on; < and > alone are none."""
  text = f"<{word}>"
  return [
    text[start : start + n]
    for start in range(len(text))
    for n in range(config.shortest, config.longest + 1)
    if start + n <= len(text) and not (n == 1 and start in (0, len(text) - 1))
  ]


def buckets(config: Config, word: str) -> list[int]:
  """The row of each of its n-grams."""
  return [
    fnv1a(part.encode()) % config.n_buckets for part in ngrams(config, word)
  ]


def parts(config: Config | None, words: Sequence[str]) -> Int[Array, "V P"]:
  """Rows of which each word is the mean: its own, and its n-grams' behind all.

  Filled up with NONE. Without a config a word is its own row alone.
  """
  rows = [
    [i, *(len(words) + b for b in (buckets(config, word) if config else ()))]
    for i, word in enumerate(words)
  ]
  out = np.full((len(rows), max(map(len, rows))), NONE, np.int32)
  for line, row in zip(out, rows, strict=True):
    line[: len(row)] = row
  return out
