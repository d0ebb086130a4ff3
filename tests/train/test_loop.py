"""A run compiles once, repeats to the bit, holds its memory (T7, T8, T11, T13)."""

import itertools
import time

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks.faults import runs
from data import pipeline
from train import pretrain
from train.core import track


@pytest.fixture
def compiled_at(monkeypatch):
  """Batches that were taken so far, each time that a backend compiled."""
  taken, found = itertools.count(), []
  n_taken = [0]
  take = pipeline.Prefetch.__next__

  def counted(self):
    n_taken[0] = next(taken) + 1
    return take(self)

  def listen(event, seconds, **_):
    del seconds
    if event == "/jax/core/compile/backend_compile_duration":
      found.append(n_taken[0])

  monkeypatch.setattr(pipeline.Prefetch, "__next__", counted)
  jax.monitoring.register_event_duration_secs_listener(listen)
  yield found
  jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_compiles_after_the_first_evaluation(
  page, tmp_path, compiled_at, monkeypatch
):
  """200 steps with a ragged last held-out batch, in two lives (T7)."""
  n_compiled = []
  compile_step = pretrain.run.loop.compile_step
  monkeypatch.setattr(
    pretrain.run.loop,
    "compile_step",
    lambda *args: n_compiled.append(1) or compile_step(*args),
  )
  for steps in (100, 200):
    config = page(
      train={"steps": steps, "eval_every_steps": 20, "log_every_steps": 10},
      eval={"during": ("perplexity",)},
      checkpoint={"every_steps": 20},
    )
    pretrain.main(config, epath.Path(tmp_path))
  assert sum(n_compiled) == 2  # one a life
  # Each life has stepped, evaluated and saved once after 20 more batches.
  late = [n for n in compiled_at if 20 < n < 100 or 120 < n]
  assert late == []
  assert compiled_at  # it was listened


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_run_twice_gives_the_same_bits(tmp_path, dtype):
  """In two processes (T8)."""
  folder = epath.Path(tmp_path)
  config = runs.page(folder, model={"dtype": dtype})
  digests = {}
  for name in ("one", "two"):
    assert runs.start(config, folder / name).wait() == 0
    digests[name] = runs.digest(folder / name)
  assert digests["one"] == digests["two"]
  before = runs.digest(folder / "one" / "checkpoints" / "38")
  assert before != digests["one"]  # it is the arrays that are digested


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_data_that_comes_late_is_told_once(
  page, tmp_path, monkeypatch, capsys, seconds
):
  """T11."""
  take = pipeline.TrainBatches.__next__

  def slow(self):
    time.sleep(seconds)
    return take(self)

  monkeypatch.setattr(pipeline.TrainBatches, "__next__", slow)
  config = page(train={"steps": 20, "log_every_steps": 5})
  pretrain.main(config, epath.Path(tmp_path))
  told = capsys.readouterr().out.count("the devices wait for data")
  assert told == (seconds > 0)


def test_memory_does_not_grow(tmp_path):
  """At most 1 MB in 100 steps, evaluations and checkpoints included (T13)."""
  folder = epath.Path(tmp_path)
  config = runs.page(
    folder,
    train={"steps": 1000, "log_every_steps": 50, "eval_every_steps": 100},
    eval={"during": ("perplexity",)},
    checkpoint={"every_steps": 100},
  )
  assert runs.start(config, folder / "run").wait() == 0
  rows = [r for r in track.rows(folder / "run") if r["kind"] == "train"]
  steps = np.array([row["step"] for row in rows])
  peaks = np.array([row["memory_bytes"] for row in rows])
  settled = steps >= 500
  slope, _ = np.polyfit(steps[settled], peaks[settled], 1)
  assert 100 * slope <= 1e6, (steps, peaks)
