"""Chat templates, rendered by a process that is replaced when one kills it."""

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.chat import sandbox

# Those of Unicode that stand side by side; some are marks of the sandbox, some
# stand for control tokens (data/chat/spelling.py).
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
Message = Mapping[str, Any]  # role, content; what else a template reads


class Rendered(NamedTuple):
  """A conversation as text."""

  plain: str
  marked: str  # with marks around what people wrote: data/chat/sandbox.py
  prompts: dict[int, str]  # message of the assistant -> what comes before it


class Renderer:
  """One template, and the process that renders it."""

  def __init__(
    self, template: str, names: Mapping[str, str], today: str | None = None
  ):
    """Starts nothing before the first conversation.

    Args:
      template: in jinja, as chat_template.jinja.
      names: bos_token and the like -> how the tokenizer writes it.
      today: the date of strftime_now; "" refuses a template that asks for it,
        None takes the clock's.
    """
    said = {"template": template, "names": dict(names), "today": today}
    self._first = json.dumps(said)
    self._process: subprocess.Popen | None = None
    self._lock = threading.Lock()

  def render(self, messages: Sequence[Message], **more: bool) -> Rendered:
    """Renders a conversation.

    Args:
      messages: of it.
      **more: add_generation_prompt, or another switch of the template.

    Raises:
      ValueError: the template refuses it, fails, or takes too much.
    """
    asked = {"messages": list(messages), "more": more}
    if found := _NONCHARACTERS.search(json.dumps(asked, ensure_ascii=False)):
      raise ValueError(
        f"a message holds U+{ord(found[0]):04X}, which is no character and "
        "marks things here: take it out."
      )
    with self._lock:
      line = self._ask(json.dumps(asked))
    if not line:
      raise ValueError(
        "the chat template was stopped: it takes more than "
        f"{sandbox.CPU_SECONDS} s or {sandbox.MEMORY_BYTES >> 20} MiB for one "
        "conversation."
      )
    reply = json.loads(line)
    if "error" in reply:
      raise ValueError(
        f"the chat template does not take this: {reply['error']}"
      )
    prompts = {int(i): text for i, text in reply["prompts"].items()}
    return Rendered(reply["plain"], reply["marked"], prompts)

  def _ask(self, request: str) -> str:
    try:
      if self._process is None:
        self._process = subprocess.Popen(
          # -P: the modules beside it are none of its imports.
          [sys.executable, "-P", pathlib.Path(sandbox.__file__)],
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          stderr=subprocess.DEVNULL,
          encoding="utf-8",
        )
        weakref.finalize(self, _end, self._process)
        self._process.stdin.write(self._first + "\n")
      self._process.stdin.write(request + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line.endswith("\n"):  # it is gone: the next one gets a new process
      self._process.kill()
      _end(self._process)
      self._process = None
      return ""
    return line


def _end(process: subprocess.Popen) -> None:
  """Closes its input, on which it ends."""
  with contextlib.suppress(BrokenPipeError):
    process.stdin.close()
  process.stdout.close()
  process.wait()
