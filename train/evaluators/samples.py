"""What the model writes, to look at while it learns."""

from collections.abc import Sequence
from typing import Any

from data.tokenizer import Tokenizer
from models import decode, families, sampling


def write(
  model: families.Config,
  params: Any,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  settings: sampling.Config,
) -> list[str]:
  """Continues every prompt; returns prompts and what follows them."""
  ids = [tokenizer.prompt(prompt) for prompt in prompts]
  written = decode.generate(
    model, params, ids, settings, end_ids=tokenizer.end_ids
  )
  return [
    prompt + tokenizer.decode([i for i in text if i not in tokenizer.end_ids])
    for prompt, text in zip(prompts, written, strict=True)
  ]
