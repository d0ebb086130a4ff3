"""Runs of train.lora: resumed, on every mesh, merged, evaluated with its base.

F3, F4, C5.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from configs import door
from convert import merge
from models import arrays, base, checkpoint, decode, manifest, prefix, sampling
from train import evaluate, lora, pretrain
from train.core import conflicts, parts

ADAPTER = {
  "name": "lora",
  "paths": ("*/attention/[qv]", "*/mlp/down"),
  "rank": 4,
  "dropout": 0.1,
}


@pytest.fixture(scope="module")
def from_base(page, tmp_path_factory):
  """A base of four steps, and the config of an adapter beside it."""
  workdir = epath.Path(tmp_path_factory.mktemp("base"))
  pretrain.main(page(train={"steps": 4}), workdir)

  def config(weights="float32", adapter=None, **changes):
    made = page(**changes).to_dict()
    del made["model"], made["tokenizer"]
    made["base"] = {"path": str(workdir), "weights": weights}
    adapter = adapter or {}
    made["adapter"] = adapter if "name" in adapter else {**ADAPTER, **adapter}
    filled, _ = base.fill(made, [])
    return door.build(filled, lora.SECTIONS)

  return checkpoint.find(workdir), config


@pytest.fixture(scope="module")
def trained(from_base, tmp_path_factory):
  """Six steps beside a base in NF4, a checkpoint every two."""
  path, config = from_base
  before = _files(path)
  config = config("nf4", checkpoint={"every_steps": 2})
  workdir = epath.Path(tmp_path_factory.mktemp("lora"))
  lora.main(config, workdir)
  assert _files(path) == before  # the base, to the byte
  return config, workdir


def _files(path) -> dict[str, bytes]:
  return {name: (path / name).read_bytes() for name in manifest.names(path)}


def _arrays(path) -> dict[str, np.ndarray]:
  return {
    f"{part}/{name}": x
    for part in ("params", "state")
    for name, x in arrays.read(path / part)
  }


def test_a_checkpoint_is_the_adapter_alone(from_base, trained):
  path, _ = from_base
  own = arrays.describe(checkpoint.find(trained[1]) / "params")
  ends = {name.rpartition("/")[2] for name in own}
  assert ends == {"a", "b"} and len(own) == 6
  moments = arrays.describe(checkpoint.find(trained[1]) / "state")
  kept = [name for name in moments if moments[name].shape]
  assert all(name.endswith(("/a", "/b")) for name in kept if "opt" in name)
  card = json.loads((checkpoint.find(trained[1]) / "card.json").read_text())
  assert card["parent_sha256"] == manifest.digest(path)


def test_resumed_equals_never_interrupted(trained, tmp_path):
  """From the second checkpoint: dropout, data and moments to the bit."""
  config, expected = trained
  workdir = epath.Path(tmp_path)
  _copy(expected / "checkpoints" / "4", workdir / "checkpoints" / "4")
  lora.main(config, workdir)
  ours, theirs = (_arrays(checkpoint.find(w)) for w in (workdir, expected))
  assert ours.keys() == theirs.keys()
  for name, x in ours.items():
    np.testing.assert_array_equal(x, theirs[name], err_msg=name)


@pytest.mark.slow
def test_eight_devices_train_as_one(from_base, tmp_path):
  """Fully sharded and split over tensor against one device, fp32."""
  _, config = from_base
  found = []
  for mesh in ({"data": 2, "fsdp": 2, "tensor": 2, "rules": "fsdp_tensor"}, {}):
    workdir = epath.Path(tmp_path) / str(len(found))
    lora.main(config("nf4", {"dropout": 0.0}, mesh=mesh), workdir)
    found.append(_arrays(checkpoint.find(workdir)))
  for name, x in found[0].items():
    if name.startswith("params/"):
      np.testing.assert_allclose(
        x, found[1][name], rtol=1e-5, atol=1e-5, err_msg=name
      )


def test_merged_says_what_the_adapter_says(trained, tmp_path, capsys):
  """The held-out loss of the two together, and of the one made of them."""
  config, workdir = trained
  evaluate.main(config, workdir)
  figures = json.loads((workdir / "evaluation.json").read_text())
  whole = epath.Path(tmp_path) / "merged"
  merge.merge(workdir, whole)
  card = json.loads((whole / "card.json").read_text())
  assert card["parent"] == str(checkpoint.find(workdir))
  model, params = checkpoint.load(whole)
  assert model == config.model
  _, joined = checkpoint.load(workdir)
  leaf = joined["stack"]["layers"]["block_0"]["attention"]["q"]
  assert leaf.base.kind == "nf4"
  merged = params["stack"]["layers"]["block_0"]["attention"]["q"]
  one = jax.tree.map(lambda x: x[0], leaf)
  np.testing.assert_allclose(merged[0], one.dense(), rtol=1e-6, atol=1e-7)
  assert figures["heldout_loss"] > 0


def test_a_base_that_changed_is_refused(from_base, trained, tmp_path):
  path, _ = from_base
  copied = epath.Path(tmp_path) / "copied"
  _copy(checkpoint.find(trained[1]), copied)
  card = json.loads((copied / "card.json").read_text())
  card["parent_sha256"] = "0" * 64
  (copied / "card.json").write_text(json.dumps(card))
  (copied / manifest.NAME).unlink()
  manifest.seal(copied)
  with pytest.raises(ValueError, match="put the base back as it was"):
    checkpoint.load(copied)


@pytest.mark.parametrize(
  "kind", ["prompt", pytest.param("prefix", marks=pytest.mark.slow)]
)
def test_what_texts_begin_with_is_trained(from_base, tmp_path, kind):
  """Each of its leaves, and no byte of the base; it is evaluated, and writes."""
  path, config = from_base
  before = _files(path)
  adapter = {"name": kind, "n_tokens": 4, "d_network": 8}
  made = config(adapter=adapter, batch={"packing": "stream"})
  workdir = epath.Path(tmp_path)
  lora.main(made, workdir)
  assert _files(path) == before
  _, plain = checkpoint.load(path)
  seed = jax.random.key(made.train.seed)
  first, _ = parts.make(made).split(plain, seed)
  first = arrays.by_path(first)
  now = dict(arrays.read(checkpoint.find(workdir) / "params"))
  assert now.keys() == first.keys()
  for name, x in now.items():
    assert abs(x - first[name]).max() > 1e-3, name
  evaluate.main(made, workdir)
  assert json.loads((workdir / "evaluation.json").read_text())["step"] == 6
  model, params = checkpoint.load(workdir)
  assert prefix.length(params) == 4
  settings = sampling.Config(max_tokens=4, temperature=0.0)
  (text,) = decode.generate(model, params, [[1, 70, 71]], settings)
  assert len(text) == 4
  with pytest.raises(ValueError, match="which no matrix holds"):
    merge.merge(workdir, epath.Path(tmp_path) / "merged")


def test_a_prefix_asks_for_one_text_a_row(from_base):
  _, config = from_base
  adapter = {"name": "prompt", "n_tokens": 4}
  with pytest.raises(ValueError, match="a row is one text"):
    conflicts.check(config(adapter=adapter))


def test_b_alone_steps_faster_with_lora_plus(from_base):
  _, config = from_base
  split = parts.make(config(adapter={"b_speed": 16.0}))
  flat = arrays.by_path(split.speeds)
  assert {name[-1]: speed for name, speed in flat.items()} == {"a": 1, "b": 16}


def test_a_path_without_inputs_is_told_before_any_work(from_base):
  _, config = from_base
  with pytest.raises(ValueError, match="is a vector"):
    conflicts.check(config(adapter={"paths": ("*_norm/scale",)}))


@pytest.mark.parametrize(
  ("section", "change", "told"),
  [
    ("adapter", {"rank": 8}, "adapter.rank=4, and now it is 8"),
    ("base", {"weights": "int8"}, "base.weights='nf4', and now it is 'int8'"),
  ],
)
def test_an_adapter_of_another_kind_is_no_resumption(
  trained, tmp_path, section, change, told
):
  config, expected = trained
  workdir = epath.Path(tmp_path)
  _copy(expected / "checkpoints" / "4", workdir / "checkpoints" / "4")
  other = dataclasses.replace(config.sections[section], **change)
  changed = dataclasses.replace(
    config, sections={**config.sections, section: other}
  )
  with pytest.raises(ValueError, match=told):
    lora.main(changed, workdir)


def _copy(src, dst):
  dst.mkdir(parents=True)
  for path in src.iterdir():
    if path.is_dir():
      _copy(path, dst / path.name)
    else:
      (dst / path.name).write_bytes(path.read_bytes())
