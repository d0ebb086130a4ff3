"""Tokens per second of the input pipeline, on the standard library's source.

    python -m benchmarks.speed.input

Prepares the store once, in a temporary folder, then reads the same number of
tokens in turns through: the pipeline (shuffle, packing, BOS and EOS, segments),
the pipeline ahead on a thread, a mixture of two corpora, and the plainest
loader there is, slices of one numpy array of ids in memory, which neither
shuffles documents nor knows where they end. The last line is JSON.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from data import pipeline, prepare, tokenizer
from data.batch import Batch
from data.store import Store

CONFIG = pipeline.Config(size=32, length=256)
BATCHES = 100  # in a turn
TURNS = 7


def windows(store: Store) -> Iterator[Batch]:
  """The yardstick: rows at random places of one array."""
  (corpus,) = store.train
  ids = np.concatenate([corpus[i] for i in range(len(corpus))])
  rng = np.random.default_rng(0)
  ones = np.ones((CONFIG.size, CONFIG.length), np.int32)
  positions = np.broadcast_to(np.arange(CONFIG.length), ones.shape)
  while True:
    starts = rng.integers(0, len(ids) - CONFIG.length - 1, CONFIG.size)
    rows = np.stack([ids[s : s + CONFIG.length + 1] for s in starts])
    yield Batch(
      rows[:, :-1], rows[:, 1:], ones.astype(np.float32), ones, positions
    )


def packed(store: Store, n_corpora: int = 1) -> pipeline.TrainBatches:
  """The pipeline, over the corpus once or mixed with itself."""
  return pipeline.train_batches(
    CONFIG,
    store.train * n_corpora,
    (1.0,) * n_corpora if n_corpora > 1 else (),
    range(CONFIG.size),
    seed=0,
  )


def tokens_per_second(batches: Iterator[Batch]) -> float:
  """Reads one turn."""
  started = time.perf_counter()
  for _ in range(BATCHES):
    next(batches)
  seconds = time.perf_counter() - started
  return BATCHES * CONFIG.size * CONFIG.length / seconds


def main() -> None:
  """Measures the readers in turns, so that they share the machine's moods."""
  with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    store = prepare.prepare(
      prepare.Config(), tokenizer.Config(), f"{folder}/store"
    )
    seconds = time.perf_counter() - started
    ahead = pipeline.Prefetch(packed(store), CONFIG.n_ahead)
    readers: dict[str, Iterator[Batch]] = {
      "windows": windows(store),
      "pipeline": packed(store),
      "ahead": ahead,
      "mixture": packed(store, n_corpora=2),
    }
    found = {name: [] for name in readers}
    for _ in range(TURNS):
      for name, batches in readers.items():
        found[name].append(tokens_per_second(batches))
    ahead.close()
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    n_bytes = sum(c.n_bytes for c in store.train + store.heldout)
  print(f"prepared {n_bytes / 1e6:.1f} MB in {seconds:.1f} s")
  for name, rate in medians.items():
    print(
      f"{name:<9} {rate / 1e6:7.2f} M tokens/s"
      f" {rate / medians['windows']:6.3f} of windows"
    )
  print(
    json.dumps(
      {
        "name": "input",
        "tokens_per_second": round(medians["pipeline"]),
        "tokens_per_second_ahead": round(medians["ahead"]),
        "tokens_per_second_mixture": round(medians["mixture"]),
        "tokens_per_second_windows": round(medians["windows"]),
        "ratio_to_windows": round(medians["pipeline"] / medians["windows"], 4),
        "prepare_seconds": round(seconds, 2),
        "prepare_mb_per_second": round(n_bytes / 1e6 / seconds, 3),
      }
    )
  )


if __name__ == "__main__":
  main()
