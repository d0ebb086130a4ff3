"""What the model writes, to look at while it learns."""

from collections.abc import Sequence
from typing import Any

from data import corrupt
from data.tokenizer import Tokenizer
from models import decode, families, sampling


def encode(
  model: families.Config, tokenizer: Tokenizer, prompts: Sequence[str]
) -> tuple[list[list[int]], list[list[int]] | None]:
  """What `decode.generate` takes as prompts, and as sources."""
  if not families.reads(model, "source"):
    return [tokenizer.prompt(prompt) for prompt in prompts], None
  read = [tokenizer.whole(prompt) for prompt in prompts]
  return [[model.start_id] for _ in prompts], read


def write(
  model: families.Config,
  params: Any,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  settings: sampling.Config,
  *,
  prefixed: bool = False,
) -> list[str]:
  """Continues every prompt; returns prompts and what follows them.

  A family that reads a source reads the prompt, and what follows is what it
  writes about it.

  Args:
    model: the architecture.
    params: of it.
    tokenizer: of prompts and texts.
    prompts: to go on from.
    settings: how tokens are drawn.
    prefixed: whether the tokens of a prompt see each other, as in training.
  """
  ids, sources = encode(model, tokenizer, prompts)
  written = decode.generate(
    model,
    params,
    ids,
    settings,
    end_ids=tokenizer.end_ids,
    sources=sources,
    prefixed=prefixed,
  )
  between = " -> " if sources else ""
  return [
    prompt
    + between
    + corrupt.decode(tokenizer, [i for i in text if i not in tokenizer.end_ids])
    for prompt, text in zip(prompts, written, strict=True)
  ]
