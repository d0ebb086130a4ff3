"""Text with control tokens in it to ids, each with its place in the text.

A control token is set by its id, between texts; no text spells one. The ids are
those of the whole at once: a text behind a control token is no beginning of a
text, which some tokenizers would begin with a space.
"""

import abc
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import sentencepiece
import tokenizers

from data.tokenizer import CONTROLS, SETTINGS, Tokenizer

_STANDINS = [chr(i) for i in range(0xFDD5, 0xFDF0)]  # noncharacters
_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class Place(NamedTuple):
  """A token, and the characters of its text that it stands for."""

  id: int
  start: int
  stop: int


class Speller(abc.ABC):
  """What a tokenizer calls its control tokens, and where tokens lie."""

  controls: dict[str, int]  # name -> id

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    names = dict(zip(("pad_token", *_NAMES[:2]), CONTROLS, strict=True))
    if SETTINGS in tokenizer.beside:
      said = json.loads(tokenizer.beside[SETTINGS])
      names = {name: _content(said[name]) for name in _NAMES if said.get(name)}
    self.names: dict[str, str] = names  # bos_token -> how it is written

  @abc.abstractmethod
  def spell(self, parts: Sequence[str | int]) -> list[list[Place]]:
    """The tokens of each part, which is text or a control token's id."""


class _Parts(Speller):
  """Each text by itself: for tokenizers that begin none with a space."""

  def spell(self, parts: Sequence[str | int]) -> list[list[Place]]:
    return [
      [Place(part, 0, 1)] if isinstance(part, int) else self._places(part)
      for part in parts
    ]

  @abc.abstractmethod
  def _places(self, text: str) -> list[Place]:
    """The tokens of a text."""


class _Bytes(_Parts):
  def __init__(self, tokenizer: Tokenizer):
    super().__init__(tokenizer)
    self.controls = {name: i for i, name in enumerate(CONTROLS)}

  def _places(self, text: str) -> list[Place]:
    ends = [i for i, char in enumerate(text) for _ in char.encode()]
    ids = self._tokenizer.encode(text)
    return [Place(x, i, i + 1) for x, i in zip(ids, ends, strict=True)]


class _SentencePiece(_Parts):
  def __init__(self, tokenizer: Tokenizer):
    super().__init__(tokenizer)
    self._model = sentencepiece.SentencePieceProcessor(
      model_proto=tokenizer.blob
    )
    self.controls = {
      self._model.id_to_piece(i): i
      for i in range(self._model.vocab_size())
      if self._model.is_control(i)
    }

  def _places(self, text: str) -> list[Place]:
    if SETTINGS in self._tokenizer.beside:
      return self._found(text, 0)
    places, at = [], 0
    for i, part in enumerate(text.split("\u2581")):
      if i:  # a space to the model, so that it is spelt in bytes
        mark = self._tokenizer.encode("\u2581")
        places += [Place(x, at - 1, at) for x in mark]
      places += self._found(part, at)
      at += len(part) + 1
    return places

  def _found(self, text: str, at: int) -> list[Place]:
    """The pieces of a text that begins there; theirs are counted in bytes."""
    chars = [i for i, char in enumerate(text) for _ in char.encode()]
    chars.append(len(text))
    pieces = self._model.encode(text, return_type="proto").pieces
    # All bytes of a character but the last have no width of their own.
    return [
      Place(
        x.id, at + chars[x.begin], at + max(chars[x.end], chars[x.begin] + 1)
      )
      for x in pieces
    ]


class _HuggingFace(Speller):
  """Control tokens are stood for by characters that no text holds."""

  def __init__(self, tokenizer: Tokenizer):
    super().__init__(tokenizer)
    self._model = tokenizers.Tokenizer.from_str(tokenizer.blob.decode())
    self._model.encode_special_tokens = True  # "<s>" in a text is text
    self._model.no_truncation()
    self._model.no_padding()
    # It would trim the spaces off a token's place.
    self._model.post_processor = None
    added = self._model.get_added_tokens_decoder()
    self._added = {i: x for i, x in added.items() if x.special}
    self.controls = {x.content: i for i, x in self._added.items()}
    self._standins: dict[int, str] = {}  # id -> character
    self._stood_for: dict[int, int] = {}  # the character's id -> id

  def spell(self, parts: Sequence[str | int]) -> list[list[Place]]:
    text = "".join(
      self._standin(part) if isinstance(part, int) else part for part in parts
    )
    found = self._model.encode(text, add_special_tokens=False)
    spelt, ends, at = [], [], 0
    for part in parts:
      spelt.append([])
      ends.append(at)
      at += 1 if isinstance(part, int) else len(part)
    ends.append(at)
    part = 0
    for x, (start, stop) in zip(found.ids, found.offsets, strict=True):
      if x in self._stood_for:
        # Some control tokens take the spaces beside them.
        while not isinstance(parts[part], int) or spelt[part]:
          part += 1
        spelt[part].append(Place(self._stood_for[x], 0, 1))
        continue
      while start >= ends[part + 1]:
        part += 1
      first = ends[part]
      spelt[part].append(Place(x, start - first, max(stop, start + 1) - first))
    return spelt

  def _standin(self, control: int) -> str:
    if control not in self._standins:
      if len(self._standins) == len(_STANDINS):
        raise ValueError(
          f"a chat template sets more than {len(_STANDINS)} control tokens."
        )
      char, like = _STANDINS[len(self._standins)], self._added[control]
      self._model.add_tokens(
        [
          tokenizers.AddedToken(
            char,
            lstrip=like.lstrip,
            rstrip=like.rstrip,
            normalized=False,
            special=False,
          )
        ]
      )
      self._standins[control] = char
      self._stood_for[self._model.token_to_id(char)] = control
    return self._standins[control]


def _content(token: Any) -> str:
  return token["content"] if isinstance(token, dict) else token


def make(tokenizer: Tokenizer) -> Speller:
  """The speller of a tokenizer of any kind."""
  kinds = {
    "tokenizer.bytes": _Bytes,
    "tokenizer.model": _SentencePiece,
    "tokenizer.json": _HuggingFace,
  }
  return kinds[tokenizer.filename](tokenizer)
