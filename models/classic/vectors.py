"""Words as vectors: who is near, what is to c as b is to a, and their files.

Three formats: word2vec's text ("V D", then a word and its numbers a line), its
binary (the same head; a word, a space, D float32), and GloVe's text, which has
no head. All that reads such files reads these.
"""

import dataclasses
import difflib
import functools
import itertools

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from models.classic import subwords as subwords_lib

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Vectors:
  """A vector a word; with the n-grams' rows, one for any word."""

  words: tuple[str, ...]
  table: Float[Array, "V D"]
  subwords: subwords_lib.Config | None = None
  buckets: Float[Array, "buckets D"] | None = None

  @functools.cached_property
  def ids(self) -> dict[str, int]:
    """Which row is whose."""
    return {word: i for i, word in enumerate(self.words)}

  @functools.cached_property
  def directions(self) -> Float[Array, "V D"]:
    """The table with rows of length 1."""
    norms = np.linalg.norm(self.table, axis=1, keepdims=True)
    return self.table / np.maximum(norms, 1e-12)

  def of(self, word: str) -> Float[Array, "D"]:
    """Its vector; of an unseen word, the mean of its n-grams'.

    Raises:
      ValueError: it is unseen and has none.
    """
    if word in self.ids:
      return self.table[self.ids[word]]
    rows = subwords_lib.buckets(self.subwords, word) if self.subwords else []
    if not rows:
      near = difflib.get_close_matches(word, self.words, n=3, cutoff=0.0)
      raise ValueError(
        f"there is no vector of {word!r}; words like it: {', '.join(near)}."
      )
    return self.buckets[rows].mean(0)

  def nearest(
    self, vector: Float[Array, "D"], n: int, without: tuple[str, ...] = ()
  ) -> list[tuple[str, float]]:
    """The n words of most similar direction, with the cosine.

    Args:
      vector: of any length.
      n: at most so many.
      without: words that are not asked for.
    """
    cosines = self.directions @ (vector / max(np.linalg.norm(vector), 1e-12))
    cosines[[self.ids[word] for word in without if word in self.ids]] = -np.inf
    found = _largest(cosines, n)
    return [(self.words[i], float(cosines[i])) for i in found]

  def analogy(self, a: str, b: str, c: str, n: int) -> list[tuple[str, float]]:
    """The n words that are to c what b is to a: nearest to b - a + c."""
    a_D, b_D, c_D = (x / np.linalg.norm(x) for x in map(self.of, (a, b, c)))
    return self.nearest(b_D - a_D + c_D, n, without=(a, b, c))


def _largest(scores: Float[Array, "V"], n: int) -> Int[Array, "n"]:
  n = min(n, int(np.isfinite(scores).sum()))
  found = np.argpartition(-scores, max(n - 1, 0))[:n]
  return found[np.argsort(-scores[found], kind="stable")]


def write(path: epath.Path, vectors: Vectors, *, headed: bool = True) -> None:
  """Writes word2vec's text, or GloVe's, which has no head.

  Numbers have the nine digits from which a float32 comes back as it was.
  """
  with path.open("w", encoding="utf-8") as file:
    if headed:
      file.write(f"{len(vectors.words)} {vectors.table.shape[1]}\n")
    for word, row in zip(vectors.words, vectors.table, strict=True):
      file.write(f"{word} {' '.join(f'{x:.9g}' for x in row)}\n")


def write_binary(path: epath.Path, vectors: Vectors) -> None:
  """Writes word2vec's binary."""
  rows = np.ascontiguousarray(vectors.table, "<f4")
  with path.open("wb") as file:
    file.write(f"{len(vectors.words)} {rows.shape[1]}\n".encode())
    for word, row in zip(vectors.words, rows, strict=True):
      file.write(word.encode() + b" " + row.tobytes() + b"\n")


def read(path: epath.Path) -> Vectors:
  """Reads a text of word2vec's or GloVe's; the first line tells which.

  Raises:
    ValueError: a line that is none of its kind, with its number.
  """
  with path.open("rb") as file:
    texts = (line.decode(errors="replace").rstrip(" \r\n") for line in file)
    first = next(texts, "").split(" ")
    headed = len(first) == 2 and all(part.isdigit() for part in first)
    width = int(first[1]) if headed else len(first) - 1
    if not headed:
      texts = itertools.chain([" ".join(first)], texts)
    words, rows = [], []
    for number, line in enumerate(texts, start=1 + headed):
      word, *numbers = line.rsplit(" ", width)
      if len(numbers) != width:
        raise ValueError(f"{path}:{number} has no {width} numbers.")
      try:
        rows.append(np.array(numbers, np.float32))
      except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}.") from error
      words.append(word)
  return _whole(path, words, rows, int(first[0]) if headed else len(words))


def read_binary(path: epath.Path) -> Vectors:
  """Reads word2vec's binary.

  Raises:
    ValueError: its head promises more than the file holds.
  """
  with path.open("rb") as file:
    head = file.readline(64).split()
    if len(head) != 2 or not all(part.isdigit() for part in head):
      raise ValueError(f"{path} begins with no 'V D': it is no binary file.")
    n, width = map(int, head)
    raw = file.read()
  if len(raw) < n * (4 * width + 2):
    raise ValueError(
      f"{path} has {len(raw):,} bytes, too few for {n:,} words of {width}."
    )
  words, rows, at = [], [], 0
  for _ in range(n):
    space = raw.find(b" ", at)
    end = space + 1 + 4 * width
    if space < 0 or end > len(raw):
      raise ValueError(f"{path} ends within word {len(words) + 1} of {n}.")
    words.append(raw[at:space].decode(errors="replace").lstrip("\n"))
    rows.append(np.frombuffer(raw, "<f4", width, space + 1))
    at = end
  return _whole(path, words, rows, n)


def _whole(path, words, rows, n: int) -> Vectors:
  if len(words) != n or not words:
    raise ValueError(f"{path} holds {len(words)} words, and promises {n}.")
  if not np.isfinite(table := np.stack(rows)).all():
    raise ValueError(f"{path} holds numbers that are not finite.")
  return Vectors(tuple(words), table)
