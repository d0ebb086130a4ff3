"""Do a checkpoint and transformers, with its export, write the same tokens?

    python -m benchmarks.parity.written runs/smollm2_tuned runs/smollm2_theirs \\
      runs/functions_heldout.jsonl

Each answers the first questions (`instruction`) of a file, greedily, in the chat
template that it has itself. Ends with 1 where a token differs. Needs the extra
`parity`.
"""

import sys
from typing import NamedTuple

import torch
import transformers
from etils import epath

from configs import door
from data import rows as tables
from models import decode, sampling
from sharding import mesh
from train.evaluators import spoken, subject

N_QUESTIONS, N_TOKENS = 8, 64


class Written(NamedTuple):
  """Tokens, of prompts and behind them."""

  prompts: list[list[int]]
  answers: list[list[int]]


def ours(
  path: epath.Path, questions: list[str], n_tokens: int = N_TOKENS
) -> Written:
  """What a checkpoint writes."""
  who = subject.load(path, mesh.Config())
  prompts = spoken.prompts(who, questions)
  settings = sampling.Config(temperature=0.0, max_tokens=n_tokens)
  ends = who.tokenizer.end_ids
  found = decode.generate(who.model, who.params, prompts, settings, ends)
  return Written(prompts, [[*map(int, ids)] for ids in found])


def theirs(
  folder: epath.Path, questions: list[str], n_tokens: int = N_TOKENS
) -> Written:
  """What transformers writes, one question at a time."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()
  found = Written([], [])
  for question in questions:
    said = [{"role": "user", "content": question}]
    read = tokenizer.apply_chat_template(
      said, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
      ids = model.generate(**read, do_sample=False, max_new_tokens=n_tokens)
    n = read["input_ids"].shape[1]
    found.prompts.append(ids[0, :n].tolist())
    found.answers.append(ids[0, n:].tolist())
  return found


def main(arguments: list[str]) -> int:
  """Compares; the exit code.

  Raises:
    ValueError: other arguments than three.
  """
  if len(arguments) != 3:
    raise ValueError(f"expected CHECKPOINT FOLDER ROWS, got {arguments}.")
  path, folder, rows = map(epath.Path, arguments)
  found = tables.read(str(rows))[:N_QUESTIONS]
  questions = [row["instruction"] for row in found]
  one, other = ours(path, questions), theirs(folder, questions)
  same = [a == b for a, b in zip(one.answers, other.answers, strict=True)]
  n = sum(map(len, other.answers))
  print(
    f"prompts: {'the same' if one.prompts == other.prompts else 'not the same'}"
    f"; answers: {sum(same)} of {len(same)} are the same, of {n} tokens in all"
  )
  return int(one != other)


if __name__ == "__main__":
  with door.plain_mistakes():
    sys.exit(main(sys.argv[1:]))
