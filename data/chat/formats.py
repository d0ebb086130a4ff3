"""What the columns of a record mean, by the name of a format.

instruction  instruction, input and system where there are, output   Alpaca
chat         messages: role, content; or conversations: from, value  ShareGPT
completion   prompt, completion: text as it is, or messages
preference   prompt where there is one, chosen, rejected: text or messages
pairs        source, target: a question and its answer
labels       text, label: a name of data.chat.labels, its number, or, where
             there are no names, a number to be met
tokens       words, labels: lists of one length
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

Format = Literal[
  "text",
  "instruction",
  "chat",
  "completion",
  "preference",
  "pairs",
  "labels",
  "tokens",
]
Message = dict[str, Any]
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  # format -> columns that must be there, and those that may
  "instruction": (("instruction", "output"), ("input", "system")),
  "chat": ((), ("messages", "conversations", "system")),
  "completion": (("prompt", "completion"), ()),
  "preference": (("chosen", "rejected"), ("prompt",)),
  "pairs": (("source", "target"), ()),
  "labels": (("text", "label"), ()),
  "tokens": (("words", "labels"), ()),
}
assert {"text", *COLUMNS} == {*get_args(Format)}
# Formats that have a text to read and another to write.
APART = {"instruction", "completion", "pairs"}
# Formats of which a template makes text.
SPOKEN = {"instruction", "chat", "pairs"}
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT = {
  "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
  "assistant": "assistant", "bing": "assistant", "bard": "assistant",
  "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip


def columns(form: Format, renamed: Mapping[str, str]) -> tuple[str, ...]:
  """The columns to read of a record."""
  must, may = COLUMNS[form]
  return tuple(renamed.get(name, name) for name in (*must, *may))


def named(
  record: Mapping[str, Any], form: Format, renamed: Mapping[str, str]
) -> dict[str, Any]:
  """A record by our names.

  Raises:
    ValueError: a column is missing.
  """
  must, may = COLUMNS[form]
  ours = {name: record.get(renamed.get(name, name)) for name in (*must, *may)}
  ours = {name: value for name, value in ours.items() if value is not None}
  if lacking := [renamed.get(x, x) for x in must if x not in ours]:
    raise ValueError(
      f"{form} needs {', '.join(lacking)}; it has {', '.join(record) or 'none'}"
    )
  return ours


def conversation(record: Mapping[str, Any], form: Format) -> list[Message]:
  """The messages of a record that `named` gave.

  Raises:
    ValueError: it holds none.
  """
  if form == "chat":
    found = record.get("messages")
    if found is None:
      found = shared(record.get("conversations"))
    said = messages(found)
  elif form == "instruction":
    instruction, more = record["instruction"], record.get("input") or ""
    both = f"{instruction}\n\n{more}" if more else instruction
    # A template may read the two apart, as Alpaca's does.
    user = {"role": "user", "content": both, "instruction": instruction}
    said = messages([user | {"input": more}, _answer(record["output"])])
  else:  # pairs
    user = {"role": "user", "content": record["source"]}
    said = messages([user, _answer(record["target"])])
  if system := record.get("system"):
    said = messages([{"role": "system", "content": system}, *said])
  return said


def two_texts(record: Mapping[str, Any], form: Format) -> tuple[str, str]:
  """What is read and what is written, of a record that `named` gave.

  Raises:
    ValueError: they are no texts, or there is nothing to read.
  """
  if form == "pairs":
    read, written = [record["source"]], record["target"]
  elif form == "completion":
    read, written = [record["prompt"]], record["completion"]
  else:  # instruction
    names = ("system", "instruction", "input")
    read = [record[name] for name in names if record.get(name)]
    written = record["output"]
  for text in (*read, written):
    if not isinstance(text, str):
      raise ValueError(f"{text!r:.80} is no text")
  if not any(read):
    raise ValueError("there is nothing to read")
  return "\n\n".join(read), written


def messages(found: Any) -> list[Message]:
  """Checks that something is a conversation.

  Raises:
    ValueError: it is none; says what is wrong with it.
  """
  if not isinstance(found, list) or not found:
    raise ValueError(f"a conversation is a list of messages, not {found!r:.80}")
  for i, message in enumerate(found, start=1):
    if not isinstance(message, dict) or message.get("role") not in ROLES:
      raise ValueError(
        f"message {i} has no role of {', '.join(ROLES)}: {message!r:.80}"
      )
    content = message.get("content")
    is_call = content is None and message.get("tool_calls")
    if not (isinstance(content, str | list) or is_call):
      raise ValueError(f"message {i} has no content: {message!r:.80}")
    if not (content or is_call):
      raise ValueError(f"message {i} is empty")
    # What a table has no value for, it has as null.
    found[i - 1] = {k: v for k, v in message.items() if v is not None}
  return found


def shared(found: Any) -> list[Message]:
  """ShareGPT's names in the place of ours.

  Raises:
    ValueError: somebody speaks whom nobody knows.
  """
  if not isinstance(found, list):
    raise ValueError("it has neither messages nor conversations")
  said = []
  for message in found:
    who = message.get("from") if isinstance(message, dict) else None
    if who not in _SHAREGPT:
      raise ValueError(f"from={who!r} is none of {', '.join(_SHAREGPT)}")
    said.append({"role": _SHAREGPT[who], "content": message.get("value")})
  return said


def _answer(content: Any) -> Message:
  return {"role": "assistant", "content": content}
