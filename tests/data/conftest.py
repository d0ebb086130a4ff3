"""A small corpus of awkward texts, and a store of it in bytes."""

import json
import random

import pytest

from data import prepare, tokenizer

WORDS = ["def", "self", "return", "é", "naïve", "数据", "🙂", "x_1", "</s>"]
SPACES = [" ", "  ", "\n", "\n\n    ", "\t", "\r\n", "\u2581", "\u00a0"]


@pytest.fixture(scope="session")
def texts() -> list[str]:
  rng = random.Random(0)
  return [
    "".join(
      rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 60))
    )
    for _ in range(120)
  ]


@pytest.fixture(scope="session")
def corpus(texts, tmp_path_factory):
  """A JSONL file of the texts."""
  path = tmp_path_factory.mktemp("corpus") / "web.jsonl"
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  return path


@pytest.fixture(scope="session")
def in_bytes() -> tokenizer.Config:
  return tokenizer.Config(kind="bytes", vocab_size=259)


@pytest.fixture(scope="session")
def store(corpus, in_bytes, tmp_path_factory):
  config = prepare.Config(
    sources=(str(corpus),), heldout_fraction=0.2, shard_bytes=3_000
  )
  out = tmp_path_factory.mktemp("prepared") / "store"
  return prepare.prepare(config, in_bytes, out)
