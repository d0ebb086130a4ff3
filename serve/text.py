"""Ids to text as they come: nothing is written that could still change.

Held back are the bytes of an unfinished UTF-8 character, and whatever may be
the beginning of a stop string.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence

from data import corrupt
from data.tokenizer import Tokenizer

_BROKEN = "\ufffd"  # what `decode` writes for bytes that are no character
_MAX_UNFINISHED = 3  # bytes of a UTF-8 character that lacks its last
_CONTEXT = 16  # tokens that are decoded again with each new one


class Text:
  """The text of one row: joined, what it hands out is decode(all ids).

  With stop strings it is cut where the first of them is complete.
  """

  def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
    self.ended = False  # a stop string was met: nothing more will come
    self._decode = functools.partial(corrupt.decode, tokenizer)
    self._stop = stop
    self._ids: list[int] = []
    self._n_read = 0  # characters of decode(self._ids) that were taken
    self._held = ""  # taken, but may begin a stop string

  def push(self, token: int) -> str:
    """Takes one more id and gives the text that is certain by now."""
    self._ids.append(token)
    text = self._decode(self._ids)
    n_broken = len(text) - len(text.rstrip(_BROKEN))
    n_open = min(n_broken, _MAX_UNFINISHED)
    new = text[self._n_read : len(text) - n_open]
    self._n_read += len(new)
    self._forget(n_open)
    return self._release(new)

  def finish(self) -> str:
    """Gives what was held back; no id may follow."""
    new = self._release(self._decode(self._ids)[self._n_read :])
    rest, self._held = self._held, ""
    return new + rest

  def _forget(self, n_open: int) -> None:
    """Keeps the last ids only; how a piece reads depends on none further."""
    if len(self._ids) < 2 * _CONTEXT:
      return
    recent = self._ids[-_CONTEXT:]
    text = self._decode(recent)
    # Without text before it, a piece would read as the first of all.
    if text.rstrip(_BROKEN):
      self._ids, self._n_read = recent, len(text) - n_open

  def _release(self, new: str) -> str:
    if self.ended:
      return ""
    text = self._held + new
    found = [(text.find(s) + len(s), -len(s)) for s in self._stop if s in text]
    if found:
      end, minus_length = min(found)
      self.ended, self._held = True, ""
      return text[: end + minus_length]
    n_held = max((_overlap(text, s) for s in self._stop), default=0)
    self._held = text[len(text) - n_held :]
    return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
  """The length of the longest end of the text that begins the stop string."""
  sizes = range(min(len(text), len(stop) - 1), 0, -1)
  return next((n for n in sizes if text.endswith(stop[:n])), 0)


def rows(
  tokenizer: Tokenizer,
  stop: Sequence[str],
  n_rows: int,
  steps: Iterable[Sequence[int | None]],
) -> Iterator[list[str | None]]:
  """One token of every row at a time -> what to write of each; None: all is.

  Args:
    tokenizer: decodes.
    stop: strings that end a row.
    n_rows: in every step.
    steps: tokens, None behind the end of a row; read no further than needed.
  """
  texts: list[Text | None] = [Text(tokenizer, stop) for _ in range(n_rows)]
  for tokens in steps:
    pieces: list[str | None] = [None] * n_rows
    for row, (text, token) in enumerate(zip(texts, tokens, strict=True)):
      if text is None:
        continue
      pieces[row] = text.finish() if token is None else text.push(token)
      if token is None or text.ended:
        texts[row] = None
    yield pieces
    if not any(texts):
      return
  yield [text.finish() if text else None for text in texts]
