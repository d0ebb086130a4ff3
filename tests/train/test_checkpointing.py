"""Checkpoints: whole or not at all, and back on any mesh.

C2, C4, C8, C9, C10, C12, C14, S8.
"""

import dataclasses
import errno
import json
import os
import resource
import threading

import chex
import jax
import numpy as np
import pytest
from etils import epath

from models import arrays, checkpoint, families, manifest
from sharding import mesh, rules
from train.core import checkpointing, optim, retention, state

WIDE = rules.make(
  mesh.make(mesh.Config(data=2, fsdp=2, tensor=2)), "fsdp_tensor"
)
FLAT = rules.make(mesh.make(mesh.Config(data=1, fsdp=8)), "fsdp")
ALONE = rules.make(mesh.make(mesh.Config(), jax.devices()[:1]), "dp")


@pytest.fixture(scope="module")
def transform(tiny):
  config = optim.CONFIGS["adamw"](lr=1e-2, ema=0.9, moments="int8")
  return optim.make(config, lambda _: 1.0, families.axes(tiny))


@pytest.fixture(scope="module")
def trained(tiny, transform):
  """A state in which every leaf is a number of its own."""
  layout = state.shardings(tiny, transform, WIDE)
  shapes = state.abstract(tiny, transform, WIDE)
  rng = np.random.default_rng(0)

  def fill(leaf):
    if np.issubdtype(leaf.dtype, np.integer):
      return np.full(leaf.shape, 7, leaf.dtype)
    return rng.normal(size=leaf.shape).astype(leaf.dtype)

  return jax.device_put(jax.tree.map(fill, shapes), layout)


@pytest.fixture(scope="module")
def alone(tiny, transform, trained):
  """The same on one device: a save is four times as fast."""
  return jax.device_put(trained, state.shardings(tiny, transform, ALONE))


def _settings(model) -> dict:
  return {"model": {"name": "llama", **dataclasses.asdict(model)}}


def _open(folder, model, say=print, **config) -> checkpointing.Checkpoints:
  return checkpointing.Checkpoints(
    epath.Path(folder),
    checkpointing.Config(**config),
    _settings(model),
    lambda path: (path / "tokenizer.bytes").write_text("ids"),
    say=say,
  )


PROGRESS = checkpointing.Progress({"0": [3, 5], "made_from": {}}, {"k": 1})


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny, trained):
  folder = epath.Path(tmp_path_factory.mktemp("run"))
  checkpoints = _open(folder, tiny)
  checkpoints.save(trained, PROGRESS, {"loss": 1.5})
  checkpoints.close()
  return folder


@pytest.mark.parametrize(
  "layout", [WIDE, FLAT, ALONE], ids="wide flat one".split()
)
def test_every_mesh_gets_the_same_bits(saved, tiny, transform, trained, layout):
  wanted = state.abstract(tiny, transform, layout)
  there, progress = _open(saved, tiny).restore(wanted, say=print)
  chex.assert_trees_all_equal(jax.device_get(there), jax.device_get(trained))
  assert progress == PROGRESS
  for leaf, place in zip(
    jax.tree.leaves(there), jax.tree.leaves(wanted), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(place.sharding, leaf.ndim)


def test_the_directory_is_complete(saved, tiny, trained, transform):
  path = checkpoint.find(saved)
  assert path.name == "7"
  names = {p.name for p in path.iterdir()}
  assert {
    "config.json", "tokenizer.bytes", "params", "state", "data", "card.json",
    "manifest.json",
  } <= names  # fmt: skip
  card = json.loads((path / "card.json").read_text())
  assert card["step"] == 7 and card["metrics"] == {"loss": 1.5}
  assert {"git", "command", "parent", "jax", "devices"} <= card.keys()
  assert checkpoint.config(path) == tiny
  # params/ is the average, for that is what is evaluated and served.
  model, params = checkpoint.load(saved, FLAT, dtype="float32")
  assert model == tiny
  average = optim.eval_params(trained.opt_state, trained.params)
  chex.assert_trees_all_equal(jax.device_get(params), jax.device_get(average))


def test_bf16_on_request(saved):
  _, params = checkpoint.load(saved, dtype="bfloat16")
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"bfloat16"}


def test_no_checkpoint_says_where_it_looked(tmp_path):
  with pytest.raises(ValueError, match="holds no checkpoint"):
    checkpoint.find(epath.Path(tmp_path))


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_is_found_and_an_older_step_taken(
  tmp_path, tiny, transform, alone, damage
):
  checkpoints = _open(tmp_path, tiny)
  checkpoints.save(alone, PROGRESS, {})
  newer = alone.replace(step=alone.step + 1)
  checkpoints.save(newer, PROGRESS, {})
  checkpoints.close()
  data = epath.Path(tmp_path) / "checkpoints" / "8" / "params" / "d"
  file = max(data.iterdir(), key=lambda p: p.stat().length)
  raw = bytearray(file.read_bytes())
  if damage == "flip":
    raw[len(raw) // 2] ^= 1
    file.write_bytes(bytes(raw))
  elif damage == "cut":
    file.write_bytes(bytes(raw[:-1]))
  else:
    file.unlink()
  said = []
  wanted = state.abstract(tiny, transform, ALONE)
  found, _ = _open(tmp_path, tiny).restore(wanted, said.append)
  assert int(found.step) == 7
  assert said[0].startswith("passing over") and file.name in said[0]
  assert "resuming from" in said[1] and said[1].endswith("that verifies")
  with pytest.raises(ValueError, match="is damaged"):
    checkpoint.load(epath.Path(tmp_path))
  (epath.Path(tmp_path) / "checkpoints" / "7" / "card.json").unlink()
  with pytest.raises(ValueError, match="no checkpoint in .* verifies"):
    _open(tmp_path, tiny).restore(wanted, said.append)


def test_a_relative_workdir(tmp_path, tiny, transform, alone, monkeypatch):
  monkeypatch.chdir(tmp_path)
  checkpoints = _open("run", tiny)
  checkpoints.save(alone, PROGRESS, {})
  checkpoints.close()
  wanted = state.abstract(tiny, transform, ALONE)
  there, _ = _open("run", tiny).restore(wanted, say=print)
  chex.assert_trees_all_equal(jax.device_get(there), jax.device_get(alone))
  assert checkpoint.load(epath.Path("run"))[0] == tiny


def _at(state, step: int):
  return state.replace(step=jax.numpy.int32(step))


def _names(folder) -> list[str]:
  return sorted(p.name for p in (epath.Path(folder) / "checkpoints").iterdir())


def test_old_ones_go_and_the_best_stays(tmp_path, tiny, alone):
  best = retention.Best(metric="loss")
  with _open(
    tmp_path, tiny, every_steps=1, keep_last=2, keep_every_steps=4,
    keep_best=best,
  ) as checkpoints:  # fmt: skip
    for step, loss in enumerate([9.0, 9.0, 1.0, 3.0, 4.0, 5.0, 6.0]):
      checkpoints.save(_at(alone, step), PROGRESS, {"loss": loss})
  assert _names(tmp_path) == ["0", "2", "4", "5", "6"]


@pytest.mark.parametrize("card", ["{", "[]", '{"metrics": {"loss": "low"}}'])
def test_an_old_damaged_card_is_no_reason_to_stop(tmp_path, tiny, alone, card):
  best = retention.Best(metric="loss")
  with _open(tmp_path, tiny, keep_last=1, keep_best=best) as checkpoints:
    checkpoints.save(_at(alone, 1), PROGRESS, {"loss": 1.0})
    checkpoints.wait()
    (checkpoint.find(epath.Path(tmp_path)) / "card.json").write_text(card)
    checkpoints.save(_at(alone, 2), PROGRESS, {"loss": 2.0})
  assert _names(tmp_path) == ["2"]


def test_torn_ones_are_swept_and_nothing_else(tmp_path, tiny, alone):
  with _open(tmp_path, tiny) as checkpoints:
    checkpoints.save(_at(alone, 2), PROGRESS, {})
    checkpoints.save(_at(alone, 3), PROGRESS, {})
  folder = epath.Path(tmp_path) / "checkpoints"
  (folder / "3" / "manifest.json").unlink()  # killed before it
  for left in ("4.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-12", "notes"):
    (folder / left / "params").mkdir(parents=True)
  assert checkpoint.steps(epath.Path(tmp_path)) == [2]
  _open(tmp_path, tiny).close()
  assert _names(tmp_path) == ["2", "notes"]


def test_a_save_does_not_wait_for_the_disk(tmp_path, tiny, alone):
  """And what is saved is the state as it was, though a step takes it over."""
  step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  on_disk = threading.Event()
  expected = jax.device_get(alone)
  with _open(tmp_path, tiny) as checkpoints:
    wait = checkpoints._writer.wait

    def slowly():
      on_disk.wait()
      wait()

    checkpoints._writer.wait = slowly
    copy = jax.tree.map(lambda x: x + 0, alone)
    checkpoints.save(copy, PROGRESS, {})
    jax.block_until_ready(step(copy))
    assert checkpoint.steps(epath.Path(tmp_path)) == []
    on_disk.set()
  rest = dict(arrays.read(checkpoint.find(epath.Path(tmp_path)) / "state"))
  assert rest["step"] == 7
  saved = {n.removeprefix("params/"): x for n, x in rest.items()}
  for name, leaf in arrays.by_path(expected.params).items():
    np.testing.assert_array_equal(saved[name], leaf)


def _spoil(path) -> None:
  """Flips a bit of the arrays."""
  file = max((path / "state" / "d").iterdir(), key=lambda p: p.stat().length)
  raw = bytearray(file.read_bytes())
  raw[len(raw) // 2] ^= 1
  file.write_bytes(bytes(raw))


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_run_goes_on_from_before_a_damaged_one(
  tmp_path, tiny, transform, alone, keep_last
):
  """The damaged step is made anew; the good ones beneath stay until then."""
  run = epath.Path(tmp_path)
  with _open(tmp_path, tiny, keep_last=3) as checkpoints:
    for step in (6, 8):
      checkpoints.save(_at(alone, step), PROGRESS, {})
  _spoil(run / "checkpoints" / "8")
  wanted = state.abstract(tiny, transform, ALONE)
  with _open(tmp_path, tiny, keep_last=keep_last) as checkpoints:
    found, _ = checkpoints.restore(wanted, print)
    assert int(found.step) == 6
    assert _names(tmp_path) == ["6", "8"]
    checkpoints.save(_at(alone, 8), PROGRESS, {})
    checkpoints.wait()
    assert _names(tmp_path) == ["6", "8"][-keep_last:]
    _spoil(run / "checkpoints" / "8")
    checkpoints.save(_at(alone, 7), PROGRESS, {})
  # Step 8 is later than the last good one: it would be in the way.
  assert _names(tmp_path)[-1] == "7"
  assert manifest.verify(run / "checkpoints" / "7") is None


def test_the_same_step_is_saved_once(tmp_path, tiny, alone):
  with _open(tmp_path, tiny) as checkpoints:
    checkpoints.save(alone, PROGRESS, {"loss": 1.0})
    checkpoints.save(alone, PROGRESS, {"loss": 2.0})
  card = checkpoint.find(epath.Path(tmp_path)) / "card.json"
  assert json.loads(card.read_text())["metrics"] == {"loss": 1.0}


def _fail(number: int, after=lambda *_: None):
  def fail(*args):
    after(*args)
    raise OSError(number, os.strerror(number))

  return fail


@pytest.mark.parametrize(
  "where, number",
  [
    ("start", errno.ENOSPC),
    ("wait", errno.EIO),
    ("join", errno.ENOSPC),
    ("describe", errno.EIO),
    ("seal", errno.EROFS),
    ("seal", errno.EACCES),
  ],
)
def test_a_disk_that_fails_costs_one_save(
  tmp_path, tiny, alone, monkeypatch, where, number
):
  said = []
  with _open(tmp_path, tiny, keep_last=2, say=said.append) as checkpoints:
    checkpoints.save(_at(alone, 1), PROGRESS, {})
    checkpoints.wait()
    with monkeypatch.context() as patch:
      is_ours = where in ("describe", "seal")
      owner = manifest if is_ours else checkpoints._writer
      after = [] if where in ("start", "seal") else [getattr(owner, where)]
      patch.setattr(owner, where, _fail(number, *after))
      checkpoints.save(_at(alone, 2), PROGRESS, {})
      checkpoints.wait()
    assert said == [
      f"step 2 was not saved: {os.strerror(number)}; the run goes on, the newest "
      "whole one is of step 1"
    ]
    assert _names(tmp_path) == ["1"]  # what was written is gone again
    with pytest.raises(ValueError, match="it goes on from step 1"):
      checkpoints.finish()
    checkpoints.save(_at(alone, 3), PROGRESS, {})
    checkpoints.finish()
  assert _names(tmp_path) == ["1", "3"]


def test_writes_that_really_fail(tmp_path, tiny, alone, capfd):
  """Files may not grow beyond 20 kB, the arrays are larger: EFBIG."""
  said = []
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  with _open(tmp_path, tiny, say=said.append) as checkpoints:
    checkpoints.save(_at(alone, 1), PROGRESS, {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
      checkpoints.save(_at(alone, 2), PROGRESS, {})
      checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpoints.save(_at(alone, 3), PROGRESS, {})
    checkpoints.finish()
  assert len(said) == 1
  assert said[0].startswith(
    "step 2 was not saved: File too large; the run goes"
  )
  assert _names(tmp_path) == ["1", "3"]
  assert "Traceback" not in capfd.readouterr().err


def test_other_errors_are_no_disk(tmp_path, tiny, alone, monkeypatch):
  """A mistake of ours ends the run, as it should."""
  checkpoints = _open(tmp_path, tiny)
  monkeypatch.setattr(checkpoints._writer, "wait", _raise_type_error)
  checkpoints.save(alone, PROGRESS, {})
  with pytest.raises(TypeError, match="ours"):
    checkpoints.wait()
  monkeypatch.undo()
  checkpoints.close()


def _raise_type_error():
  raise TypeError("ours")


def test_old_ones_that_cannot_be_removed_are_told(
  tmp_path, tiny, alone, monkeypatch
):
  said = []
  with _open(tmp_path, tiny, keep_last=1, say=said.append) as checkpoints:
    checkpoints.save(_at(alone, 1), PROGRESS, {})
    checkpoints.wait()
    monkeypatch.setattr(checkpoints, "_prune", _fail(errno.EACCES))
    checkpoints.save(_at(alone, 2), PROGRESS, {})
    checkpoints.finish()
  assert said == ["old checkpoints were not removed: Permission denied"]
  assert _names(tmp_path) == ["1", "2"]


def test_settings():
  with pytest.raises(ValueError, match="every_steps=-1"):
    checkpointing.Config(every_steps=-1)
  with pytest.raises(ValueError, match="keep_last=0"):
    checkpointing.Config(keep_last=0)
  with pytest.raises(ValueError, match="no multiple of every_steps=20"):
    checkpointing.Config(every_steps=20, keep_every_steps=50)
