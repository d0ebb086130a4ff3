"""A checkpoint of every format there ever was is still read (C15).

golden/checkpoint_N.tar.gz is what `write` left when manifests had format N. A
new format gets a file of its own, and the old ones stay.
"""

import dataclasses
import pathlib
import re
import shutil
import sys

import chex
import jax
import numpy as np
import pytest
from etils import epath

from models import arrays, checkpoint, families, llama, manifest
from sharding import mesh, rules
from train.core import checkpointing, optim, state

GOLDEN = sorted(
  (pathlib.Path(__file__).parent.parent / "golden").glob("checkpoint_*.tar.gz")
)
MODEL = llama.Config(
  vocab_size=8,
  d_model=4,
  n_layers=2,
  n_heads=2,
  n_kv_heads=1,
  d_head=2,
  d_ff=8,
  max_length=16,
  dtype="float32",
)
PROGRESS = checkpointing.Progress({"0": [3, 5], "made_from": {}}, {"k": 1})
ALONE = rules.make(mesh.make(mesh.Config(), jax.devices()[:1]), "dp")


def expected() -> tuple[state.TrainState, state.TrainState]:
  """Shapes and places, and a state in which no two numbers are alike."""
  config = optim.CONFIGS["adamw"](lr=1e-2, ema=0.9)
  optimizer = optim.make(config, lambda _: 1.0, families.axes(MODEL))
  shapes = state.abstract(MODEL, optimizer, ALONE)
  numbers = iter(range(1_000_000))

  def fill(leaf):
    values = [next(numbers) for _ in range(leaf.size)]
    return np.array(values).reshape(leaf.shape).astype(leaf.dtype)

  leaves = jax.tree.map(fill, shapes).replace(step=np.int32(7))
  places = state.shardings(MODEL, optimizer, ALONE)
  return shapes, jax.device_put(leaves, places)


def open_run(folder: epath.Path) -> checkpointing.Checkpoints:
  settings = {"model": {"name": "llama", **dataclasses.asdict(MODEL)}}
  return checkpointing.Checkpoints(
    folder,
    checkpointing.Config(),
    settings,
    lambda path: (path / "tokenizer.bytes").write_text("ids"),
  )


def write(folder: epath.Path) -> None:
  with open_run(folder) as checkpoints:
    checkpoints.save(expected()[1], PROGRESS, {"loss": 1.5})
    checkpoints.finish()


def read(folder: epath.Path) -> None:
  """As a run that goes on, and as evaluation and generation."""
  shapes, whole = expected()
  with open_run(folder) as checkpoints:
    found, progress = checkpoints.restore(shapes, print)
  chex.assert_trees_all_equal(found, whole)
  assert progress == PROGRESS
  model, params = checkpoint.load(folder)
  assert model == MODEL
  average = optim.eval_params(whole.opt_state, whole.params)
  chex.assert_trees_all_equal(params, average)


@pytest.mark.parametrize("archive", GOLDEN, ids=lambda path: path.name)
def test_an_old_one_is_read(archive, tmp_path):
  shutil.unpack_archive(archive, tmp_path, filter="data")
  read(epath.Path(tmp_path))


def test_the_newest_is_todays(tmp_path, monkeypatch):
  """Who changes what is written adds a golden one first."""
  monkeypatch.setattr(sys, "orig_argv", ["python"])
  write(epath.Path(tmp_path) / "today")
  read(epath.Path(tmp_path) / "today")
  shutil.unpack_archive(GOLDEN[-1], tmp_path / "golden", filter="data")
  today, golden = (
    checkpoint.find(epath.Path(tmp_path) / name) for name in ("today", "golden")
  )
  for part in ("params", "state"):
    assert arrays.describe(today / part) == arrays.describe(golden / part)
  number = re.search(r'"format": (\d+)', (today / manifest.NAME).read_text())[1]
  assert GOLDEN[-1].name == f"checkpoint_{number}.tar.gz"
