"""Tokens per second of the input pipeline, against a step and a bare loader.

    python -m benchmarks.speed.input

Takes the quickstart page: its corpus, tokenizer, batch and model. Then reads
batches in turns through the pipeline (shuffle, packing, BOS and EOS, segments),
the pipeline ahead on a thread, a mixture of two corpora, and the plainest
loader there is: slices of one numpy array of ids in memory, which neither
shuffles documents nor knows where they end. The last line is JSON.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath

from configs import door
from data import pipeline
from data.batch import Batch
from models import families
from train import pretrain
from train.core import loop, optim, schedule, setup, state, step
from train.objectives import lm

BATCHES = 100  # in a turn
TURNS = 7
STEPS = 8


def windows(s: setup.Setup) -> Iterator[Batch]:
  """The yardstick: rows at random places of one array."""
  (corpus,) = s.store.train
  ids = np.concatenate([corpus[i] for i in range(len(corpus))])
  rng, length = np.random.default_rng(0), s.batch.length
  ones = np.ones((s.batch.size, length), np.int32)
  positions = np.broadcast_to(np.arange(length), ones.shape)
  while True:
    starts = rng.integers(0, len(ids) - length - 1, s.batch.size)
    rows = np.stack([ids[s : s + length + 1] for s in starts])
    yield Batch(
      rows[:, :-1], rows[:, 1:], ones.astype(np.float32), ones, positions
    )


def packed(s: setup.Setup, n_corpora: int = 1) -> pipeline.TrainBatches:
  """The pipeline, over the corpus once or mixed with itself."""
  weights = (1.0,) * n_corpora if n_corpora > 1 else ()
  return pipeline.train_batches(
    s.batch, s.store.train * n_corpora, weights, s.rows, seed=0
  )


def batch_seconds(batches: Iterator[Batch]) -> float:
  """Seconds a batch, over one turn."""
  started = time.perf_counter()
  for _ in range(BATCHES):
    next(batches)
  return (time.perf_counter() - started) / BATCHES


def step_seconds(config: door.Config, s: setup.Setup) -> float:
  """Median seconds of a training step on one batch."""
  factor = schedule.make(config.schedule, config.train.steps)
  optimizer = optim.make(config.optim, factor, families.axes(s.model))
  now = state.init(s.model, optimizer, s.layout, 0)
  update, _ = loop.compile_step(
    step.make(lm.make(config.objective, s.model), optimizer),
    now,
    setup.abstract_batch(s.batch, s.layout),
    s.layout,
  )
  batch, seconds = s.put(next(packed(s))), []
  for _ in range(STEPS):
    started = time.perf_counter()
    now, *_ = jax.block_until_ready(update(now, batch))
    seconds.append(time.perf_counter() - started)
  return statistics.median(seconds[1:])


def main() -> None:
  """Measures the readers in turns, so that they share the machine's moods."""
  page = door.read("configs/quickstart.py")
  config = door.build(page, pretrain.SECTIONS)
  with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    s = setup.begin(config, epath.Path(folder))
    prepared = time.perf_counter() - started
    readers = {
      "windows": windows(s),
      "pipeline": packed(s),
      "ahead": pipeline.Prefetch(packed(s), s.batch.n_ahead),
      "mixture": packed(s, n_corpora=2),
    }
    turns = {name: [] for name in readers}
    for _ in range(TURNS):
      for name, batches in readers.items():
        turns[name].append(batch_seconds(batches))
    readers["ahead"].close()
    seconds = {name: statistics.median(turns[name]) for name in turns}
    seconds["step"] = step_seconds(config, s)
    n_bytes = sum(c.n_bytes for c in s.store.train + s.store.heldout)
  per_batch = s.batch.size * s.batch.length
  print(f"prepared {n_bytes / 1e6:.1f} MB in {prepared:.1f} s")
  for name, value in seconds.items():
    print(
      f"{name:<9} {per_batch / value / 1e6:9.3f} M tokens/s,"
      f" {100 * value / seconds['step']:8.3f} % of a step"
    )
  result = {
    "name": "input",
    "tokens_per_second": round(per_batch / seconds["pipeline"]),
    "step_tokens_per_second": round(per_batch / seconds["step"]),
    "times_a_step": round(seconds["step"] / seconds["pipeline"], 1),
    "ratio_to_windows": round(seconds["windows"] / seconds["pipeline"], 4),
    "mixture_ratio_to_windows": round(
      seconds["windows"] / seconds["mixture"], 4
    ),
    "prepare_seconds": round(prepared, 2),
    "prepare_mb_per_second": round(n_bytes / 1e6 / prepared, 3),
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
