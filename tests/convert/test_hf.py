"""X1: checkpoints of transformers come in, go out, and are the same model."""

import json

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks.parity import cases
from convert import bundle, hf, shards
from data import tokenizer as tokenizers
from models import arrays, checkpoint, families, manifest

NTK = "llama_ntk"  # theirs follows the length of each text


@pytest.fixture(scope="module")
def letters():
  """Bytes as a tokenizer: 259 ids, more than the tiny models have."""
  return tokenizers.train(tokenizers.Config(kind="bytes", vocab_size=259), [])


@pytest.fixture
def tiny(tmp_path, letters):
  """Makes a checkpoint of a case, in a type."""

  def make(name, dtype=np.float32):
    return save(tmp_path / name, cases.CASES[name], letters, dtype)

  return make


def save(path, config, tokenizer=None, dtype=np.float32):
  """A checkpoint with the weights of a case, and their tree."""
  path = epath.Path(path)
  params = jax.tree.map(lambda x: x.astype(dtype), cases.params(config))
  (path / "params").mkdir(parents=True)
  leaves = arrays.by_path(params)
  shapes = {
    n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in leaves.items()
  }
  sink = arrays.Sink(path / "params", shapes, {})
  for name, leaf in leaves.items():
    sink.write(name, (), np.asarray(leaf))
  section = bundle.page(path, config, tokenizer)
  (path / "config.json").write_text(json.dumps(section))
  if tokenizer is not None:
    tokenizer.save(path)
  manifest.seal(path)
  return path, params


def read(path):
  """The parameters of a checkpoint as they are on the disk."""
  return dict(arrays.read(epath.Path(path) / "params"))


def assert_same(path, params):
  found, wanted = read(path), arrays.by_path(params)
  assert found.keys() == wanted.keys()
  for name, leaf in wanted.items():
    assert found[name].dtype == leaf.dtype, name
    np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.parametrize("name", [n for n in cases.CASES if n != NTK])
def test_out_and_in_again_is_the_same_to_the_bit(name, tiny, tmp_path):
  path, params = tiny(name)
  theirs, back = tmp_path / "theirs", tmp_path / "back"
  hf.give(path, epath.Path(theirs), max_bytes=4000)
  assert (theirs / shards.INDEX).exists()
  hf.take(epath.Path(theirs), epath.Path(back))
  assert_same(back, params)
  assert manifest.verify(epath.Path(back)) is None
  again = checkpoint.config(epath.Path(back))
  assert families.name(again) == families.name(cases.CASES[name])
  sources = json.loads((back / "card.json").read_text())["source"]["files"]
  files = {p.name for p in theirs.glob("*.safetensors")}
  assert files | {"config.json"} == sources.keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_types_are_kept_or_chosen(dtype, tiny, tmp_path):
  path, params = tiny("llama", dtype)
  hf.give(path, epath.Path(tmp_path / "theirs"))
  config = hf.take(epath.Path(tmp_path / "theirs"), epath.Path(tmp_path / "a"))
  assert config.dtype == dtype
  assert_same(tmp_path / "a", params)
  hf.take(
    epath.Path(tmp_path / "theirs"), epath.Path(tmp_path / "b"), "float32"
  )
  wide = jax.tree.map(lambda x: x.astype(np.float32), params)
  assert_same(tmp_path / "b", wide)
