"""Does a text look like Python? Its first lines must pass `tokenize`."""

import io
import tokenize
from collections.abc import Sequence


def is_python(text: str, n_lines: int = 10) -> bool:
  """Whether the first lines are a series of Python tokens.

  A bracket or a string that the cut leaves open is no mistake; a dedent to no
  level, a stray character or an unterminated one-line string is.
  """
  lines = text.splitlines()[:n_lines]
  if not any(line.strip() for line in lines):
    return False
  source = "\n".join(lines) + "\n"
  try:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
      if token.type == tokenize.ERRORTOKEN and not token.string.isspace():
        return False
  except tokenize.TokenError as error:
    return error.args[0].startswith("EOF in multi-line")
  except (SyntaxError, ValueError):
    return False
  return True


def share(texts: Sequence[str]) -> float:
  """The share of texts that look like Python."""
  return sum(map(is_python, texts)) / max(len(texts), 1)
