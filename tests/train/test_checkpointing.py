"""Checkpoints: whole or not at all, and back on any mesh (C4, C10, C14, S8)."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
from etils import epath

from models import checkpoint, families
from sharding import mesh, rules
from train.core import checkpointing, optim, state

WIDE = rules.make(
  mesh.make(mesh.Config(data=2, fsdp=2, tensor=2)), "fsdp_tensor"
)
FLAT = rules.make(mesh.make(mesh.Config(data=1, fsdp=8)), "fsdp")
ALONE = rules.make(mesh.make(mesh.Config(), jax.devices()[:1]), "dp")


@pytest.fixture(scope="module")
def transform(tiny):
  config = optim.CONFIGS["adamw"](lr=1e-2, ema=0.9)
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


def _settings(model) -> dict:
  return {"model": {"name": "llama", **dataclasses.asdict(model)}}


def _open(folder, model, **config) -> checkpointing.Checkpoints:
  return checkpointing.Checkpoints(
    epath.Path(folder),
    checkpointing.Config(**config),
    _settings(model),
    lambda path: (path / "tokenizer.bytes").write_text("ids"),
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


def test_other_shapes_are_listed(saved, tiny, transform):
  other = dataclasses.replace(tiny, d_ff=128, tied=True)
  shapes = families.abstract(other)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
  )
  with pytest.raises(ValueError) as caught:
    checkpoint.restore(checkpoint.find(saved) / "params", wanted)
  text = str(caught.value)
  assert "only there: head/table" in text
  assert "mlp/down (2, 64, 32) there, (2, 128, 32) here" in text
  assert len(text.splitlines()) <= 5


def test_no_checkpoint_says_where_it_looked(tmp_path):
  with pytest.raises(ValueError, match="holds no checkpoint"):
    checkpoint.find(epath.Path(tmp_path))


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_is_found_and_an_older_step_taken(
  tmp_path, tiny, transform, trained, damage
):
  checkpoints = _open(tmp_path, tiny)
  checkpoints.save(trained, PROGRESS, {})
  newer = trained.replace(step=trained.step + 1)
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


def test_a_relative_workdir(tmp_path, tiny, transform, trained, monkeypatch):
  monkeypatch.chdir(tmp_path)
  checkpoints = _open("run", tiny)
  checkpoints.save(trained, PROGRESS, {})
  checkpoints.close()
  wanted = state.abstract(tiny, transform, ALONE)
  there, _ = _open("run", tiny).restore(wanted, say=print)
  chex.assert_trees_all_equal(jax.device_get(there), jax.device_get(trained))
  assert checkpoint.load(epath.Path("run"))[0] == tiny


def test_old_ones_go_and_torn_ones_are_swept(tmp_path, tiny, trained):
  checkpoints = _open(tmp_path, tiny, keep_last=2)
  for step in (1, 2, 3):
    at = trained.replace(step=jax.numpy.int32(step))
    checkpoints.save(at, PROGRESS, {})
  checkpoints.close()
  run = epath.Path(tmp_path)
  assert checkpoint.steps(run) == [2, 3]
  (run / "checkpoints" / "3" / "manifest.json").unlink()  # killed before it
  assert checkpoint.steps(run) == [2]
  _open(tmp_path, tiny)
  assert [p.name for p in (run / "checkpoints").iterdir()] == ["2"]


def test_settings():
  with pytest.raises(ValueError, match="every_steps=-1"):
    checkpointing.Config(every_steps=-1)
  with pytest.raises(ValueError, match="keep_last=0"):
    checkpointing.Config(keep_last=0)
