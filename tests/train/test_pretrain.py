"""Whole runs: resumed to the last bit, alike on two hosts, honest in numbers.

C5, C6, C14, D2, N16, S14, T7, T10, T12.
"""

import json
import os
import subprocess
import sys

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import portpicker
import pytest
from etils import epath

from data import pipeline
from models import checkpoint, flops
from train import evaluate, pretrain
from train.core import optim, schedule, setup, sinks

CLOCK = {
  "step_seconds", "data_share", "tokens_per_second", "memory_bytes", "mfu",
}  # fmt: skip


def _rows(workdir) -> list[dict]:
  """The log without what a clock says."""
  return [
    {k: v for k, v in row.items() if k not in CLOCK}
    for row in sinks.rows(epath.Path(workdir))
  ]


def _state(workdir) -> list:
  """All arrays of the last checkpoint, on the host."""
  path = checkpoint.find(epath.Path(workdir))
  reader = ocp.PyTreeCheckpointHandler()

  def read(folder):
    leaves = reader.metadata(folder).tree
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    how = jax.tree.map(lambda _: as_numpy, leaves)
    return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=how))

  return [read(path / "params"), read(path / "state")]


def _progress(workdir) -> list[dict]:
  folder = checkpoint.find(epath.Path(workdir)) / "data"
  return [json.loads(p.read_text()) for p in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def whole(page, tmp_path_factory):
  """Six steps in one go, with a checkpoint every two."""
  config = page(checkpoint={"every_steps": 2}, optim={"ema": 0.9})
  workdir = epath.Path(tmp_path_factory.mktemp("whole"))
  pretrain.main(config, workdir)
  return config, workdir


def _interrupt(monkeypatch, n_batches):
  """Ends the next run before it takes one batch more than these."""
  taken = iter(range(n_batches))
  take = pipeline.Prefetch.__next__

  def stop(self):
    if next(taken, None) is None:
      raise KeyboardInterrupt
    return take(self)

  monkeypatch.setattr(pipeline.Prefetch, "__next__", stop)


def test_resumed_five_times_equals_never_interrupted(
  whole, tmp_path, monkeypatch
):
  config, expected = whole
  workdir = epath.Path(tmp_path)
  for n_batches in (3, 2, 1, 1, 0):  # lost steps, kept steps, none
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
      _interrupt(patch, n_batches)
      pretrain.main(config, workdir)
  pretrain.main(config, workdir)
  chex.assert_trees_all_equal(_state(workdir), _state(expected))
  assert _progress(workdir) == _progress(expected)
  assert _rows(workdir) == _rows(expected)


def test_a_checkpoint_alone_is_enough_to_resume(whole, tmp_path):
  """In a workdir that holds nothing else, the end is the same bits."""
  config, expected = whole
  workdir = epath.Path(tmp_path)
  (workdir / "checkpoints").mkdir()
  _copy(expected / "checkpoints" / "4", workdir / "checkpoints" / "4")
  kept = pretrain.door.load(
    workdir / "checkpoints" / "4" / "config.json", pretrain.SECTIONS
  )
  assert kept == config
  pretrain.main(kept, workdir)
  chex.assert_trees_all_equal(_state(workdir), _state(expected))


def test_the_last_step_is_saved_though_no_multiple(page, tmp_path):
  pretrain.main(
    page(checkpoint={"every_steps": 4}, train={"steps": 5}),
    epath.Path(tmp_path),
  )
  assert checkpoint.steps(epath.Path(tmp_path)) == [4, 5]


def test_evaluating_on_the_way_changes_nothing(page, whole, tmp_path):
  config = page(
    checkpoint={"every_steps": 2},
    optim={"ema": 0.9},
    eval={"during": ("perplexity",)},
    train={"eval_every_steps": 2},
  )
  pretrain.main(config, epath.Path(tmp_path))
  chex.assert_trees_all_equal(_state(tmp_path), _state(whole[1]))
  found = [r for r in _rows(tmp_path) if r["kind"] == "eval"]
  assert [r["step"] for r in found] == [2, 4, 6]
  # The checkpoint alone gives the same figures: the average was published.
  evaluate.main(config, epath.Path(tmp_path))
  figures = json.loads((epath.Path(tmp_path) / "evaluation.json").read_text())
  for name in ("heldout_loss", "bits_per_byte"):
    np.testing.assert_allclose(figures[name], found[-1][name], rtol=1e-6)


def test_a_checkpoint_alone_is_enough_to_evaluate(whole, tmp_path, capsys):
  config, workdir = whole
  evaluate.main(config, workdir)
  beside = capsys.readouterr().out
  copied = epath.Path(tmp_path) / "copied"
  _copy(checkpoint.find(workdir), copied)
  evaluate.main(config, copied)
  alone = capsys.readouterr().out
  assert alone.splitlines()[-4:] == beside.splitlines()[-4:]


def _copy(source: epath.Path, target: epath.Path) -> None:
  subprocess.run(["cp", "-r", str(source), str(target)], check=True)


def test_lines_and_rates_are_what_they_say(whole):
  config, workdir = whole
  rows = [r for r in sinks.rows(workdir) if r["kind"] == "train"]
  factor = schedule.make(config.schedule, 6)
  n_tokens = config.batch.size * config.batch.length
  per_token = flops.train_per_token(config.model, config.batch.length)
  peaks = set()
  for i, row in enumerate(rows):
    assert row["step"] == i + 1
    np.testing.assert_allclose(row["lr"], 1e-2 * float(factor(i)), rtol=1e-6)
    rate = row["tokens_per_second"]
    np.testing.assert_allclose(rate * row["step_seconds"], n_tokens, rtol=1e-6)
    assert 0 <= row["data_share"] <= 1
    peaks.add(round(rate * per_token / row["mfu"] / 1e6))
  assert len(peaks) == 1  # one measured peak, whatever the rate


@pytest.mark.slow
def test_it_learns_and_bf16_follows_fp32(page, tmp_path):
  """200 steps: the curves differ by less than 1 % (N16)."""
  curves = {}
  for dtype in ("float32", "bfloat16"):
    config = page(
      model={"dtype": dtype},
      train={"steps": 200, "log_every_steps": 50},
      mesh={"data": 1, "fsdp": 8, "rules": "fsdp"},
    )
    workdir = epath.Path(tmp_path) / dtype
    pretrain.main(config, workdir)
    rows = _rows(workdir)
    curves[dtype] = [row["loss"] for row in rows if row["kind"] == "train"]
  for i in (0, -1):  # on the steep part between, a step ahead is 5 %
    np.testing.assert_allclose(
      curves["bfloat16"][i], curves["float32"][i], rtol=1e-2
    )
  first, last = curves["float32"][0], curves["float32"][-1]
  assert first > 5 and last < 1.2  # of words drawn from twelve


def _in_two_processes(config, workdir) -> list[str]:
  """Runs it on twice four devices; returns what the two said."""
  settings = workdir.parent / "config.json"
  settings.write_text(json.dumps(config.to_dict()))
  port = portpicker.pick_unused_port()
  started = [
    subprocess.Popen(
      [sys.executable, "-m", "train.pretrain", f"--config={settings}"]
      + [f"--workdir={workdir}"],
      env={
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(i),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  said = [process.communicate(timeout=300)[0] for process in started]
  assert [p.returncode for p in started] == [0, 0], said[0] + said[1]
  return said


@pytest.mark.slow
def test_two_processes_are_one(page, whole, tmp_path):
  """The same run in two processes of four devices, and its checkpoint in one."""
  config, expected = whole
  workdir = epath.Path(tmp_path) / "two"
  said = _in_two_processes(config, workdir)
  assert "6/6" in said[0] and "6/6" not in said[1]  # the first one speaks
  for ours, theirs in zip(_rows(workdir), _rows(expected), strict=True):
    chex.assert_trees_all_close(
      {k: v for k, v in ours.items() if k != "kind"},
      {k: v for k, v in theirs.items() if k != "kind"},
      rtol=1e-5,
    )
  assert len(_progress(workdir)) == 2
  joined = {
    k: v for part in _progress(workdir) for k, v in part["data"].items()
  }
  assert joined == _progress(expected)[0]["data"]
  chex.assert_trees_all_close(
    _state(workdir), _state(expected), rtol=1e-5, atol=1e-6
  )
  # And on in one process.
  more = {**config.to_dict()}
  more["train"]["steps"] = 7
  one = pretrain.door.build(more, pretrain.SECTIONS)
  pretrain.main(one, workdir)
  assert checkpoint.steps(workdir)[-1] == 7


@pytest.mark.slow
def test_two_processes_share_rows(page, whole, tmp_path):
  """Each holds half of every row; the losses are those of one process."""
  workdir = epath.Path(tmp_path) / "shared"
  sizes = {"data": 1, "context": 8, "context_order": "zigzag"}
  _in_two_processes(page(mesh=sizes, checkpoint={"every_steps": 2}), workdir)
  ours, theirs = (
    [row["loss"] for row in _rows(w) if "loss" in row]
    for w in (workdir, whole[1])
  )
  assert len(ours) > 1
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  parts = [set(part["data"]) - {"made_from"} for part in _progress(workdir)]
  assert parts == [{str(row) for row in range(8)}] * 2


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(batch={"size": 12}), "batch.size=12 does not divide over 8 shards"),
    (dict(batch={"length": 128}), "batch.length=128 is more than"),
    (dict(train={"n_micro": 3}), "n_micro=3"),
    (dict(model={"vocab_size": 100}), "model.vocab_size=100"),
    (dict(mesh={"data": 4}), "needs 4 devices and there are 8"),
    (dict(mesh={"rules": "fdsp"}), "did you mean 'fsdp'"),
    (dict(schedule={"warmup_steps": 6}), "never reaches the peak"),
    (dict(data={"sources": ("/nowhere/*.txt",)}), "/nowhere"),
  ],
)
def test_what_does_not_fit_is_told_before_anything_compiles(
  page, tmp_path, changes, said, monkeypatch
):
  monkeypatch.setattr(pretrain.loop, "compile_step", None)
  with pytest.raises(ValueError, match=said):
    pretrain.main(page(**changes), epath.Path(tmp_path))


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(model={"d_ff": 128}), "model.d_ff=64, and now it is 128"),
    (dict(batch={"length": 16}), "batch.length=32, and now it is 16"),
  ],
)
def test_a_run_is_not_resumed_as_another(page, whole, changes, said):
  config, workdir = whole
  other = page(checkpoint={"every_steps": 2}, **changes)
  with pytest.raises(ValueError, match=said):
    pretrain.main(other, workdir)


def test_a_foreign_tokenizer_is_refused(whole, tmp_path, page):
  config, workdir = whole
  copied = epath.Path(tmp_path) / "copied"
  _copy(checkpoint.find(workdir), copied)
  (copied / "tokenizer.bytes").write_bytes(b"another")
  s = setup.begin(config, workdir)
  with pytest.raises(ValueError, match="was trained with the tokenizer"):
    setup.check_tokenizer(copied, s.store)


def test_a_run_that_stopped_early_stays_stopped(page, tmp_path, capsys):
  config = page(
    train={
      "steps": 20,
      "eval_every_steps": 1,
      "stop_early": {"metric": "heldout_loss", "patience": 2},
    },
    eval={"during": ("perplexity",)},
    optim={"lr": 1e-9},
  )
  config = pretrain.door.build(
    {**config.to_dict(), "train": {**config.to_dict()["train"],
      "stop_early": {"metric": "heldout_loss", "patience": 2,
                     "min_delta": 1.0}}},
    pretrain.SECTIONS,
  )  # fmt: skip
  pretrain.main(config, epath.Path(tmp_path))
  assert checkpoint.steps(epath.Path(tmp_path)) == [3]  # 1 best, 2 worse
  pretrain.main(config, epath.Path(tmp_path))
  assert checkpoint.steps(epath.Path(tmp_path)) == [3]
  assert "has stopped early" in capsys.readouterr().out


@pytest.mark.slow
def test_lbfgs_fits_the_full_batch(page, tmp_path):
  config = page()
  settings = config.to_dict()
  settings["optim"] = {"name": "lbfgs", "n_pairs": 4}
  settings["train"]["steps"] = 4
  config = pretrain.door.build(settings, pretrain.SECTIONS)
  assert isinstance(config.optim, optim.CONFIGS["lbfgs"])
  pretrain.main(config, epath.Path(tmp_path))
  losses = [r["loss"] for r in _rows(tmp_path) if r["kind"] == "train"]
  assert losses[-1] < losses[0] - 0.5
