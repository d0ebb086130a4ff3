"""Renders chat templates in a process of its own, which may die of them.

    python data/chat/sandbox.py < requests > replies

Jinja's sandbox keeps a template from running code; it does not keep it from
looping, doubling a string or raising a number to a power. So the bounds are the
kernel's: CPU seconds for each request, bytes of memory, no byte to any file.
The process that asks sees this one end (data/chat/rendering.py).

The first line is the template and what it may name; each further one is a
request, answered by one line. Every string of a message is rendered twice, as
it is and between marks, which tell the template's own text from what people
wrote. `{% generation %}` is the tag of transformers that says what the
assistant writes. Nothing but the standard library and jinja2 is imported.
"""

import datetime
import json
import resource
import sys
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

CPU_SECONDS = 1  # of a request
MEMORY_BYTES = 512 << 20  # of the process, the interpreter's 100 MB included
MAX_CHARS = 1 << 24  # that a template may write
# Unicode's noncharacters, which no text holds: before and behind the number of
# a message, behind its content; around what the assistant writes.
OPEN, NAMED, CLOSE, BEGIN, END = "\ufdd0\ufdd1\ufdd2\ufdd3\ufdd4"
_PLAIN = ("role", "type", "from")  # words of a message that are no content


class Generation(jinja2.ext.Extension):
  """The tag {% generation %}: marks what is inside it."""

  tags = {"generation"}

  def parse(self, parser):
    """Reads up to the tag's end."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    call = self.call_method("_marked", [jinja2.nodes.ContextReference()])
    return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _marked(self, context, caller: Callable[[], str]) -> str:
    if not context.get("is_marked__"):
      return caller()
    return BEGIN + caller() + END


def environment(today: str | None) -> jinja2.Environment:
  """What transformers gives a template; `today` is a date, None is the clock's."""

  def raise_exception(message: str):
    raise jinja2.TemplateError(message)

  def tojson(
    x, ensure_ascii=False, indent=None, separators=None, sort_keys=False
  ):
    return json.dumps(
      x,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )

  def strftime_now(form: str) -> str:
    now = datetime.datetime.now()
    if today is not None:
      if not today:
        raise jinja2.TemplateError(
          "it writes today's date, and the same text has to come out tomorrow: "
          "give data.chat.today='2026-01-31'"
        )
      now = datetime.datetime.fromisoformat(today)
    return now.strftime(form)

  made = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, jinja2.ext.loopcontrols],
  )
  made.filters["tojson"] = tojson
  made.globals |= dict(
    raise_exception=raise_exception, strftime_now=strftime_now
  )
  return made


def marked(value: Any, number: int) -> Any:
  """The same with marks around every string that people wrote."""
  if isinstance(value, dict):
    return {
      key: x if key in _PLAIN else marked(x, number) for key, x in value.items()
    }
  if isinstance(value, list):
    return [marked(x, number) for x in value]
  if isinstance(value, str) and value:
    return f"{OPEN}{number}{NAMED}{value}{CLOSE}"
  return value


def answer(
  template: jinja2.Template, names: dict[str, Any], request: dict[str, Any]
) -> dict[str, Any]:
  """Renders a conversation, and each beginning of it that an answer follows.

  Returns:
    plain: the text; marked: with its marks; prompts: message -> what comes
    before it, for those of the assistant.
  """
  messages, more = request["messages"], request.get("more", {})

  def render(messages, **extra) -> str:
    text = template.render(
      messages=messages, **names, **{"tools": None, "documents": None}, **extra
    )
    if len(text) > MAX_CHARS:
      raise ValueError(f"it writes more than {MAX_CHARS:,} characters")
    return text

  plain = render(messages, **{"add_generation_prompt": False, **more})
  if "add_generation_prompt" in more:
    prompts = {}
  else:
    prompts = {
      i: render(messages[:i], add_generation_prompt=True)
      for i, message in enumerate(messages)
      if message["role"] == "assistant" and i
    }
  parts = [marked(message, i) for i, message in enumerate(messages)]
  known = {"add_generation_prompt": False, **more, "is_marked__": True}
  return dict(plain=plain, marked=render(parts, **known), prompts=prompts)


def limit_cpu() -> None:
  """Gives the next request its seconds; the kernel ends what takes more."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  used = int(usage.ru_utime + usage.ru_stime) + 1
  _, hard = resource.getrlimit(resource.RLIMIT_CPU)
  resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, hard))


def main() -> None:
  """Answers requests until there are no more."""
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  template, names, problem = None, {}, ""
  for line in sys.stdin:
    limit_cpu()
    try:
      said = json.loads(line)
      if template is None and not problem:
        names = said["names"]
        template = environment(said["today"]).from_string(said["template"])
        continue
      reply = answer(template, names, said) if template else {"error": problem}
    except MemoryError:
      reply = {"error": f"it takes more than {MEMORY_BYTES >> 20} MiB"}
    except Exception as error:  # whatever a template can do wrong
      reply = {"error": f"{type(error).__name__}: {error}"[:500]}
      if template is None:
        problem = reply["error"]
        continue
    print(json.dumps(reply), flush=True)


if __name__ == "__main__":
  main()
