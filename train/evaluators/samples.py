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
  ids = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
  written = decode.generate(
    model, params, ids, settings, end_ids=[tokenizer.eos_id]
  )
  return [
    prompt + tokenizer.decode([i for i in text if i != tokenizer.eos_id])
    for prompt, text in zip(prompts, written, strict=True)
  ]
