"""A tiny model, a ragged batch and a run on a few text files."""

import dataclasses
import random

import numpy as np
import pytest
from etils import epath

from configs import door
from data.batch import Batch
from models import llama
from train import pretrain

VOCAB = 264  # bytes and the control ids, rounded up to a multiple of 8

TINY = llama.Config(
  vocab_size=VOCAB,
  d_model=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  d_head=8,
  d_ff=64,
  max_length=64,
  dtype="float32",
)


@pytest.fixture(scope="session")
def tiny() -> llama.Config:
  return TINY


@pytest.fixture(scope="session")
def ragged_batch() -> Batch:
  """16 rows of two packed documents each, with weights of every kind."""
  rng = np.random.default_rng(0)
  shape = (16, 16)
  split = rng.integers(4, 12, (16, 1))
  at = np.arange(16, dtype=np.int32)[None]
  second = at >= split
  weights = rng.integers(0, 2, shape) * (rng.random((16, 1)) > 0.3)
  return Batch(
    tokens=rng.integers(0, VOCAB, shape).astype(np.int32),
    targets=rng.integers(0, VOCAB, shape).astype(np.int32),
    weights=weights.astype(np.float32),
    segment_ids=(1 + second).astype(np.int32),
    positions=np.where(second, at - split, at).astype(np.int32),
  )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> epath.Path:
  """60 short files of words that repeat: there is something to learn."""
  folder = tmp_path_factory.mktemp("corpus")
  rng = random.Random(0)
  words = "the a red green cat dog sees hears likes one two three".split()
  for i in range(60):
    text = " ".join(rng.choice(words) for _ in range(rng.randint(20, 90)))
    (folder / f"{i:02}.txt").write_text(text + "\n")
  return epath.Path(folder)


@pytest.fixture(scope="session")
def page(corpus):
  """Builds the config of a tiny run; keywords change whole sections' keys."""

  def build(**changes) -> door.Config:
    settings = {
      "model": {"name": "llama", **dataclasses.asdict(TINY)},
      "tokenizer": {"kind": "bytes", "vocab_size": 259},
      "data": {"sources": (f"{corpus}/*.txt",), "heldout_fraction": 0.2},
      "batch": {"size": 8, "length": 32},
      "objective": {"chunk_tokens": 16},
      "optim": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.1},
      "schedule": {"name": "cosine", "warmup_steps": 2},
      "mesh": {"data": 8},
      "train": {"steps": 6, "log_every_steps": 1},
      "guard": {},
      "checkpoint": {},
      "log": {"report": False},
      "eval": {"during": (), "final": ("perplexity",)},
      "generate": {"max_tokens": 8},
    }
    for section, values in changes.items():
      settings[section] = {**settings[section], **values}
    return door.build(settings, pretrain.SECTIONS)

  return build
