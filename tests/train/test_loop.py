"""A run compiles once, repeats to the bit, holds its memory (T7, T8, T11, T13)."""

import time

import numpy as np
import pytest
from etils import epath

from benchmarks.faults import runs
from data import pipeline
from train import pretrain
from train.core import sinks


@pytest.mark.slow
def test_nothing_compiles_after_the_first_evaluation(tmp_path):
  """200 steps in two lives, with a ragged last held-out batch (T7)."""
  folder = epath.Path(tmp_path)
  config = runs.page(
    folder,
    train={"steps": 200, "log_every_steps": 20, "eval_every_steps": 20},
    eval={"during": ("perplexity",)},
    checkpoint={"every_steps": 20},
  )
  last = {}
  for name, first, until in (("one", 0, 100), ("two", 80, 200)):
    life = runs.start(config, folder / "run", fault=runs.log_compiles)
    life.wait_for(lambda: f"{until}/200" in life.said)  # noqa: B023
    life.kill() if until < 200 else life.wait()
    last[name] = life.said
    start, settled = life.said.split("compiled in", 1)
    assert start.count("Finished XLA compilation of jit(step)") == 1
    assert f"{first + 40}/200" in settled
    # It has stepped, evaluated and saved once: what comes now has all.
    later = settled.split(f"{first + 40}/200", 1)[1]
    assert "bits_per_byte" in later and "Finished XLA" not in later
  assert "resuming from" in last["two"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_data_that_comes_late_is_told_once(page, tmp_path, monkeypatch, capsys):
  """T11."""
  take = pipeline.TrainBatches.__next__

  def slow(self):
    time.sleep(0.5)
    return take(self)

  monkeypatch.setattr(pipeline.TrainBatches, "__next__", slow)
  config = page(batch={"n_ahead": 1}, train={"log_every_steps": 2})
  pretrain.main(config, epath.Path(tmp_path))
  assert capsys.readouterr().out.count("the devices wait for data") == 1


@pytest.mark.slow
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
  rows = [r for r in sinks.rows(folder / "run") if r["kind"] == "train"]
  steps = np.array([row["step"] for row in rows])
  peaks = np.array([row["memory_bytes"] for row in rows])
  settled = steps >= 500
  slope, _ = np.polyfit(steps[settled], peaks[settled], 1)
  assert 100 * slope <= 1e6, (steps, peaks)
