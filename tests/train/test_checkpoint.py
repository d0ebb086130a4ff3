"""What `python -m train.checkpoint` says and how it exits (C16)."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from data import tokenizer as tokenizers
from models import manifest
from train import checkpoint
from train.core import difference
from train.core.writer import Writer

TREE = {
  "a": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)},
  "blocks": {"layer_0": np.ones(4), "layer_1": np.ones(4)},
}


def _save(path, params, state, settings, step=1, **card):
  """A checkpoint made by hand."""
  writer = Writer()
  trees = {path / "params": params, path / "state": state}
  trees = jax.tree.map(jax.numpy.asarray, trees)
  for folder in trees:
    folder.mkdir(parents=True)
  writer.start(trees)
  writer.wait()
  writer.join()
  writer.close()
  (path / "config.json").write_text(json.dumps(settings))
  text = {"step": step, "time": "2026-01-02T03:04:05Z", "metrics": {}, **card}
  (path / "card.json").write_text(json.dumps(text))
  tokenizers.train(tokenizers.Config(kind="bytes", vocab_size=259), []).save(
    path
  )
  manifest.seal(path)


@pytest.fixture
def run(tmp_path) -> epath.Path:
  workdir = epath.Path(tmp_path) / "run"
  settings = {"optim": {"lr": 0.1, "clip": 1.0}}
  for step in (2, 4):
    _save(
      workdir / "checkpoints" / str(step), TREE, {"step": np.int32(step)},
      settings, step, metrics={"loss": 3.25}, parent="base",
    )  # fmt: skip
  return workdir


@pytest.fixture(autouse=True)
def _same_platform(monkeypatch):
  """Here eight devices are open already."""
  monkeypatch.setattr(jax.config, "update", lambda *_: None)


def test_list_shows_each(run, capsys):
  (run / "checkpoints" / "2" / "params" / "_METADATA").write_text("")
  assert checkpoint.main(["list", str(run)]) == 0
  head, damaged, whole = capsys.readouterr().out.splitlines()
  assert head.split() == "step time size verified parent metrics".split()
  assert damaged.split()[0] == "2" and "NO" in damaged.split()
  row = whole.split()
  n_bytes = sum(
    f.stat().st_size
    for f in os.scandir(run / "checkpoints" / "4")
    if f.is_file()
  )
  assert row[:2] == ["4", "2026-01-02T03:04:05Z"] and "yes" in row
  assert row[-3:] == ["base", "loss", "3.25"]
  assert float(row[2]) >= round(n_bytes / 1e6, 1)


def test_verify_names_what_is_damaged(run, capsys):
  assert checkpoint.main(["verify", str(run)]) == 0
  assert checkpoint.main(["verify", str(run / "checkpoints" / "4")]) == 0
  capsys.readouterr()
  (run / "checkpoints" / "2" / "tokenizer.bytes").unlink(missing_ok=True)
  (run / "checkpoints" / "2" / "config.json").unlink()
  assert checkpoint.main(["verify", str(run)]) == 1
  damaged, whole = capsys.readouterr().out.splitlines()
  assert damaged.endswith("2: config.json is missing")
  assert whole.endswith("4: whole")


def test_diff_of_equals_is_silent(run, capsys):
  two = str(run / "checkpoints" / "2")
  assert checkpoint.main(["diff", two, two]) == 0
  assert capsys.readouterr().out.splitlines()[2:] == [
    "0 settings differ; the tokenizers are the same; 4 of 4 leaves are equal to "
    "the bit"
  ]


def test_diff_tells_all_that_differs(run, tmp_path, capsys):
  other = epath.Path(tmp_path) / "other"
  tree = {
    "a": {"kernel": TREE["a"]["kernel"] + np.float32([[0, 0, 0], [0, 0, 2]])},
    "blocks": {"layer_0": np.ones(4) * 1.5, "layer_1": np.ones(4) * 0.75},
    "head": np.ones((2, 2), np.float32),
  }
  settings = {"optim": {"lr": 0.2, "ema": 0.9, "clip": 1.0}}
  _save(other, tree, {"step": np.float32(4)}, settings)
  assert checkpoint.main(["diff", str(run), str(other)]) == 1
  said = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
  assert said[0] == "config optim.ema: None and 0.9".split()
  assert said[1] == "config optim.lr: 0.1 and 0.2".split()
  by = "by {} at most, {} of the largest number".format
  assert said[2:6] == [
    f"leaf params/a/kernel {by('2.0e+00', '4.0e-01')}".split(),
    f"leaf params/blocks/layer_* {by('5.0e-01', '5.0e-01')} (2 leaves)".split(),
    "leaf params/head only in the second".split(),
    "leaf state/step int32[] and float32[]".split(),
  ]
  assert said[6][:3] == ["2", "settings", "differ;"]
  assert said[6][-9:] == "0 of 5 leaves are equal to the bit".split()


def test_diff_of_a_damaged_one_compares_nothing(run, capsys):
  (run / "checkpoints" / "4" / "config.json").write_text("{")
  assert checkpoint.main(["diff", str(run), str(run)]) == 1
  assert "not compared" in capsys.readouterr().out


def test_numbers_that_are_not_finite_are_told_apart():
  x = np.array([1.0, np.nan, np.inf, 2.0])
  assert difference._measure("x", x, x.copy()).what == "equal"
  y = np.array([1.0, np.nan, np.inf, 2.5])
  assert difference._measure("x", x, y).absolute == 0.5
  z = np.array([1.0, 0.0, np.inf, 2.0])
  assert np.isnan(difference._measure("x", x, z).absolute)
  zeros = difference._measure("x", np.zeros(2), np.ones(2))
  assert zeros.relative == np.inf


@pytest.mark.parametrize(
  "arguments", [[], ["lst", "x"], ["list"], ["diff", "x"], ["list", "x", "y"]]
)
def test_a_wrong_call_is_explained(arguments):
  with pytest.raises(ValueError, match="expected `list W`, `verify W` or"):
    checkpoint.main(arguments)


def test_a_person_is_told_in_one_line(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "train.checkpoint", "list", str(tmp_path)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and done.stdout == ""
  assert len(done.stderr.splitlines()) == 1
  assert "holds no checkpoint" in done.stderr
