"""Records to examples: what a model is finetuned on.

Of a conversation, the assistant's answers are learnt, each with the token that
ends it; of a completion, all behind the prompt, and EOS. Of a preference, the
chosen answer: `Encoder.pair` gives both. Apart, for a model of two texts, what is
written is learnt, and what is read lies before it up to its own EOS.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from configs import fields
from data import example
from data import tokenizer as tokenizers
from data.chat import formats, masking, rendering, spelling, templates
from data.chat.formats import Format, Message
from data.example import Example
from data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How records become text, and what is asked of it."""

  # A built-in template, or the path of one; "" is the tokenizer's own.
  template: Literal["", *templates.TEMPLATES] = ""
  system: str = ""  # message for conversations that have none
  today: str = ""  # 2026-01-31, for templates that write the date
  columns: dict[str, str] = dataclasses.field(
    default_factory=dict
  )  # ours: theirs
  labels: tuple[
    str, ...
  ] = ()  # names of classes, in the order of their numbers
  # Whether one text is read and another written, both as they are (T5, BART).
  apart: bool = False

  def __post_init__(self):
    fields.check(self)
    known = {
      x for pair in formats.COLUMNS.values() for part in pair for x in part
    }
    if unknown := self.columns.keys() - known:
      raise ValueError(
        f"columns={self.columns}: {', '.join(sorted(unknown))} is no column of "
        f"ours; those are {', '.join(sorted(known))}."
      )
    if self.apart and (self.template or self.system or self.today):
      raise ValueError(
        f"apart=True takes texts as they are, and template={self.template!r}, "
        f"system={self.system!r}, today={self.today!r} would make one of them: "
        "leave these out."
      )
    if len({*self.labels}) < len(self.labels):
      raise ValueError(f"labels={self.labels} names one twice.")


def talking(config: Config, tokenizer: Tokenizer) -> Tokenizer:
  """A tokenizer with its chat template, which knows what ends an answer.

  Raises:
    ValueError: it lacks the template's control tokens.
  """
  text = templates.find(config.template, tokenizer)
  beside = {**tokenizer.beside, templates.OWN: text.encode()}
  made = tokenizers.make(tokenizer.filename, tokenizer.blob, beside)
  probe = [
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "!"},
  ]
  found = Encoder(config, made).text(probe)
  end = [i for i, is_learnt in zip(*found, strict=True) if is_learnt][-1]
  if end not in made.end_ids:
    name = "generation_config.json"
    said = json.loads(made.beside.get(name, b"{}"))
    said["eos_token_id"] = [*made.end_ids, end]
    beside[name] = json.dumps(said, indent=1).encode()
    made = tokenizers.make(tokenizer.filename, tokenizer.blob, beside)
  return made


class Encoder:
  """Records of one tokenizer's texts to examples."""

  def __init__(self, config: Config, tokenizer: Tokenizer):
    self._config, self._tokenizer = config, tokenizer
    self._speller = spelling.make(tokenizer)
    self._renderer: rendering.Renderer | None = None

  def example(self, record: Mapping[str, Any], form: Format) -> Example:
    """What is learnt of a record.

    Args:
      record: column -> value.
      form: what the columns mean.

    Raises:
      ValueError: it is none of that format, or the template refuses it.
    """
    record = formats.named(record, form, self._config.columns)
    if self._config.apart:
      return self._apart(*formats.two_texts(record, form))
    if form == "labels":
      return self._labelled(record["text"], record["label"])
    if form == "tokens":
      return self._tagged(record["words"], record["labels"])
    if form == "preference":
      return self._pair(record)[0]
    if form == "completion":
      return self._completed(record["prompt"], record["completion"])
    return self.conversation(formats.conversation(record, form))

  def pair(self, record: Mapping[str, Any]) -> tuple[Example, Example]:
    """Of a preference: what was chosen and what was rejected.

    Raises:
      ValueError: it is none.
    """
    renamed = self._config.columns
    return self._pair(formats.named(record, "preference", renamed))

  def conversation(
    self, messages: Sequence[Message], first: int = 0
  ) -> Example:
    """What is learnt of a conversation.

    Args:
      messages: of it.
      first: the message from which on answers count.

    Raises:
      ValueError: nobody answers in it, or the template refuses it.
    """
    said = self.text(messages, first=first)
    if not any(said.learnt):
      raise ValueError("nobody answers: there is no message of the assistant")
    return _shifted(said.ids, said.learnt)

  def text(
    self,
    messages: Sequence[Message],
    first: int = 0,
    add_generation_prompt: bool = False,
  ) -> masking.Text:
    """The tokens of a conversation.

    Args:
      messages: of it.
      first: the message from which on answers count.
      add_generation_prompt: whether the assistant is to go on.

    Raises:
      ValueError: the template refuses it.
    """
    if self._renderer is None:
      config = self._config
      found = templates.find(config.template, self._tokenizer)
      self._renderer = rendering.Renderer(
        found, self._speller.names, config.today
      )
    messages = list(messages)
    if self._config.system and messages and messages[0]["role"] != "system":
      messages.insert(0, {"role": "system", "content": self._config.system})
      first += first > 0
    more = {"add_generation_prompt": True} if add_generation_prompt else {}
    rendered = self._renderer.render(messages, **more)
    return masking.text(rendered, messages, self._speller, first)

  def _pair(self, record: Mapping[str, Any]) -> tuple[Example, Example]:
    prompt, answers = record.get("prompt"), ("chosen", "rejected")
    if prompt is None:
      if any(isinstance(record[name], str) for name in answers):
        raise ValueError("texts that answer no prompt: it has no prompt")
      prompt = []
    chosen, rejected = (self._completed(prompt, record[x]) for x in answers)
    return chosen, rejected

  def _completed(self, prompt: Any, completion: Any) -> Example:
    """Texts as they are, or the messages that one ends with."""
    if isinstance(prompt, str) and isinstance(completion, str):
      if not completion:
        raise ValueError("the completion is empty")
      return self._continued(prompt, completion)
    if isinstance(prompt, str):
      prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
      completion = [{"role": "assistant", "content": completion}]
    before = formats.messages(prompt) if prompt else []
    messages = [*before, *formats.messages(completion)]
    return self.conversation(messages, first=len(before))

  def _continued(self, prompt: str, completion: str) -> Example:
    """One text, of which the part behind the prompt is learnt, and EOS."""
    (places,) = self._speller.spell([prompt + completion])
    begin = self._tokenizer.start or (self._tokenizer.bos_id,)
    ids = [*begin, *(x.id for x in places), self._tokenizer.eos_id]
    learnt = [x.stop > len(prompt) for x in places]
    return _shifted(ids, [*(False for _ in begin), *learnt, True])

  def _apart(self, read: str, written: str) -> Example:
    """BOS, which a model's own start takes the place of, parts the two."""
    t = self._tokenizer
    source, text = t.whole(read), t.whole(written)
    is_learnt = [False] * (len(source) + 1) + [True] * len(text)
    return _shifted([*source, t.bos_id, *text], is_learnt)

  def _labelled(self, text: Any, label: Any) -> Example:
    if not isinstance(text, str) or not text:
      raise ValueError(f"the text is {text!r:.80}, and has to be one")
    t = self._tokenizer
    ids = np.array([*t.prompt(text), t.eos_id], np.int32)
    targets, weights = np.zeros((2, len(ids)), np.int32)
    targets[0], weights[0] = self._target(label), 1
    return Example(ids, targets, weights)

  def _tagged(self, words: Any, labels: Any) -> Example:
    """Words apart, as texts in a list: the first token of each has its label."""
    if not (isinstance(words, list) and isinstance(labels, list)):
      raise ValueError("words and labels have to be lists")
    if not len(words) == len(labels) > 0:
      raise ValueError(f"{len(words)} words have {len(labels)} labels")
    t = self._tokenizer
    ids, asked = [*t.start], {}
    for i, (word, label) in enumerate(zip(words, labels, strict=True)):
      asked[len(ids)] = self._target(label)
      ids += t.encode(f" {word}" if i else word)
    ids.append(t.eos_id)
    targets, weights = np.zeros((2, len(ids)), np.int32)
    targets[[*asked]], weights[[*asked]] = [*asked.values()], 1
    return Example(np.array(ids, np.int32), targets, weights)

  def _target(self, label: Any) -> int:
    names = self._config.labels
    if isinstance(label, str) and label in names:
      return names.index(label)
    if type(label) is int and (0 <= label < len(names)):
      return label
    if not names and isinstance(label, int | float):
      return int(np.float32(label).view(np.int32))
    raise ValueError(
      f"the label {label!r:.40} is none of data.chat.labels="
      f"{names} and no number of them"
      if names
      else f"the label {label!r:.40} is no number: name the classes in "
      "data.chat.labels"
    )


def _shifted(ids: Sequence[int], learnt: Sequence[bool]) -> Example:
  return example.shifted(np.array(ids, np.int32), np.array(learnt, np.int32))
