"""A rendered conversation to tokens, each with whether the model says it.

What people wrote is told from the template's text by the marks of the sandbox,
so that a control token comes from the template alone: a user's "<|im_end|>" is
eight letters and some signs.

An answer is what the assistant writes: from where the prompt for it ends, or,
in a template that writes shorter conversations otherwise, from its content, to
the first control token behind it. Where a template says {% generation %}, it is
what stands there.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.chat.rendering import Message, Rendered
from data.chat.sandbox import BEGIN, CLOSE, END, NAMED, OPEN
from data.chat.spelling import Speller

_ITEM = re.compile(
  f"{OPEN}(\\d+){NAMED}(.*?){CLOSE}|([{BEGIN}{END}])", re.DOTALL
)


class Text(NamedTuple):
  """A conversation as the model reads it."""

  ids: list[int]
  learnt: list[bool]  # whether the model says this token itself


class _Piece(NamedTuple):
  """What stands somewhere in a rendered conversation."""

  start: int
  stop: int
  owner: int | None  # the message that it is of; None: the template's


def text(
  rendered: Rendered,
  messages: Sequence[Message],
  speller: Speller,
  first: int = 0,
) -> Text:
  """The tokens of a rendered conversation.

  Args:
    rendered: the text of it.
    messages: of it.
    speller: of the tokenizer.
    first: the message from which on answers are learnt.

  Raises:
    ValueError: the template changes what was said beyond recognition, or does
      not end an answer.
  """
  plain = rendered.plain
  pieces, tagged = _aligned(rendered)
  controls = _controls(plain, pieces, speller.controls)
  if tagged is None:
    spans = _answers(rendered, messages, pieces, sorted(controls))
  else:
    spans = tagged
  # Answers before the first message that counts end before what it says.
  places = (x.start for x in pieces if x.owner is not None and x.owner >= first)
  border = min(places, default=0)
  is_learnt = np.zeros(len(plain) + 1, bool)
  for start, stop in spans:
    is_learnt[start:stop] = stop > border
  ids, learnt = [], []
  starts, parts = _parts(plain, controls, speller.controls)
  for start, places in zip(starts, speller.spell(parts), strict=True):
    for place in places:
      here = is_learnt[start + place.start : start + place.stop]
      ids.append(place.id)
      learnt.append(bool(here.any()))
  return Text(ids, learnt)


def _aligned(
  rendered: Rendered,
) -> tuple[list[_Piece], list[tuple[int, int]] | None]:
  """The pieces of the plain text, and what its tags {% generation %} hold."""
  plain, marked = rendered.plain, rendered.marked
  items = list(_items(marked))
  pieces, tagged, at = [], [], 0
  for i, (owner, content) in enumerate(items):
    if content == BEGIN:
      tagged.append((at, at))
      continue
    if content == END:
      tagged[-1] = (tagged[-1][0], at)
      continue
    if owner is None:
      choices = [content]
    else:
      behind = _literal_behind(items, i)
      quoted = json.dumps(content, ensure_ascii=False)[1:-1]
      choices = [content, content.strip(), content.rstrip(), content.lstrip()]
      choices = [x for x in (*choices, quoted) if _is_at(plain, at, x, behind)]
    if not choices or not plain.startswith(choices[0], at):
      raise ValueError(
        "the chat template changes what a message says, here at "
        f"{plain[max(at - 20, 0) : at + 20]!r}: which of its text people wrote "
        "cannot be told. Give another data.chat.template."
      )
    pieces.append(_Piece(at, at + len(choices[0]), owner))
    at += len(choices[0])
  if at != len(plain):
    raise ValueError(
      "the chat template writes a conversation otherwise when its messages "
      "stand between marks: which of its text people wrote cannot be told. "
      "Give another data.chat.template."
    )
  return pieces, tagged if BEGIN in marked else None


def _items(marked: str) -> Iterator[tuple[int | None, str]]:
  """What a marked text holds: (message, content), or (None, literal or tag)."""
  at = 0
  for found in _ITEM.finditer(marked):
    if found.start() > at:
      yield None, marked[at : found.start()]
    number, content, tag = found.groups()
    yield (None, tag) if tag else (int(number), content)
    at = found.end()
  if at < len(marked):
    yield None, marked[at:]


def _literal_behind(items: list[tuple[int | None, str]], i: int) -> str:
  literal = ""
  for owner, content in items[i + 1 :]:
    if owner is not None:
      break
    literal += content if content not in (BEGIN, END) else ""
  return literal


def _is_at(plain: str, at: int, content: str, behind: str) -> bool:
  return plain.startswith(content + behind, at)


def _controls(
  plain: str, pieces: Sequence[_Piece], controls: Mapping[str, int]
) -> dict[int, str]:
  """The control tokens that the template itself sets: place -> name."""
  if not controls:
    return {}
  names = sorted(controls, key=len, reverse=True)
  pattern = re.compile("|".join(map(re.escape, names)))
  found, start = {}, 0
  contents = [piece for piece in pieces if piece.owner is not None]
  for stop, behind in [
    *((piece.start, piece.stop) for piece in contents),
    (len(plain), 0),
  ]:
    for match in pattern.finditer(plain[start:stop]):
      found[start + match.start()] = match[0]
    start = behind
  return found


def _answers(
  rendered: Rendered,
  messages: Sequence[Message],
  pieces: Sequence[_Piece],
  controls: Sequence[int],
) -> Iterator[tuple[int, int]]:
  """Where each answer begins, and where the token that ends it does.

  That token is one character wide here: its part of the text is one place.
  """
  for i, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    own = [piece for piece in pieces if piece.owner == i]
    if not own:
      raise ValueError(
        f"message {i + 1} is of the assistant, and the chat template writes "
        "nothing of it: it is empty, or holds what the template does not read."
      )
    start, stop = own[0].start, own[-1].stop
    prompt = rendered.prompts.get(i)
    if prompt and rendered.plain.startswith(prompt) and len(prompt) <= start:
      start = len(prompt)
    later = (x.start for x in pieces if x.owner not in (None, i))
    border = min((x for x in later if x >= stop), default=len(rendered.plain))
    ends = [x for x in controls if stop <= x < border]
    if not ends:
      raise ValueError(
        "the chat template ends an answer with no control token that the "
        "tokenizer has: the model would never learn to stop. Give another "
        "data.chat.template."
      )
    yield start, ends[0] + 1


def _parts(
  plain: str, controls: Mapping[int, str], ids: Mapping[str, int]
) -> tuple[list[int], list[str | int]]:
  """Cuts a text at its control tokens: where each part begins, and the part."""
  starts, parts, at = [], [], 0
  for place in sorted(controls):
    if place > at:
      starts.append(at)
      parts.append(plain[at:place])
    starts.append(place)
    parts.append(ids[controls[place]])
    at = place + len(controls[place])
  if at < len(plain):
    starts.append(at)
    parts.append(plain[at:])
  return starts, parts
