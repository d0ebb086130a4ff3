"""X1: checkpoints of transformers come in, go out, and are the same model."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax import numpy as jnp

from benchmarks.parity import cases
from convert import bundle, hf, shards
from data import tokenizer as tokenizers
from models import arrays, checkpoint, families, manifest


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


FAST = ("gpt2", "qwen3_tied", "mixtral")
BOTH_WAYS = [
  name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
  for name in cases.CASES
]


@pytest.mark.parametrize("name", BOTH_WAYS)
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


def changed(tmp_path, letters, name="llama", **changes):
  """A folder of theirs whose config.json says something else."""
  path, _ = save(tmp_path / "ours", cases.CASES[name], letters)
  theirs = epath.Path(tmp_path / "theirs")
  hf.give(path, theirs)
  settings = json.loads((theirs / "config.json").read_text())
  (theirs / "config.json").write_text(json.dumps(settings | changes))
  return theirs


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"num_hidden_layers": 3}, "lack model.layers.2"),
    ({"num_hidden_layers": 1}, "hold model.layers.1"),
    ({"intermediate_size": 57}, r"\(56, 32\), not \(57, 32\)"),
    ({"tie_word_embeddings": True}, "hold lm_head.weight"),
    ({"model_type": "qwen2", "architectures": None}, "lack model.*q_proj.bias"),
    (
      {"auto_map": {"AutoModel": "evil.Model"}, "logit_scale": 2},
      "logit_scale",
    ),
  ],
)
def test_weights_that_do_not_fit_are_refused(changes, words, tmp_path, letters):
  theirs = changed(tmp_path, letters, **changes)
  with pytest.raises(ValueError, match=words):
    hf.take(theirs, epath.Path(tmp_path / "back"))
  assert not (tmp_path / "back").exists()


def rename(folder, change):
  """Gives the tensors of a file other names; None drops one."""
  file = folder / shards.ONE
  arrays_there = {n: t.read() for n, t in shards.tensors(file).items()}
  renamed = {change(n): x for n, x in arrays_there.items()}
  renamed.pop(None, None)
  shapes = {
    n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in renamed.items()
  }
  shards.write(folder, shapes, 10**9, renamed.get)


def test_names_without_the_models_name_are_known(tmp_path, letters):
  theirs = changed(tmp_path, letters, "gpt2")
  rename(theirs, lambda name: name.removeprefix("transformer."))
  hf.take(theirs, epath.Path(tmp_path / "back"))
  assert_same(tmp_path / "back", cases.params(cases.CASES["gpt2"]))


def test_a_tied_head_may_stand_there_twice_but_not_differ(tmp_path, letters):
  theirs = changed(tmp_path, letters, "qwen3_tied")
  file, table = theirs / shards.ONE, "model.embed_tokens.weight"
  there = {n: t.read() for n, t in shards.tensors(file).items()}
  for head in (there[table], there[table] + 1):
    both = {**there, "lm_head.weight": head}
    shapes = {
      n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in both.items()
    }
    shards.write(theirs, shapes, 10**9, both.get)
    if head is there[table]:
      hf.take(theirs, epath.Path(tmp_path / "back"))
  with pytest.raises(ValueError, match="hold lm_head.weight"):
    hf.take(theirs, epath.Path(tmp_path / "again"))


def test_what_is_there_is_not_overwritten(tiny, tmp_path):
  path, _ = tiny("llama")
  with pytest.raises(ValueError, match="not empty"):
    hf.give(path, path)
  hf.give(path, epath.Path(tmp_path / "theirs"))
  with pytest.raises(ValueError, match="not empty"):
    hf.take(epath.Path(tmp_path / "theirs"), path)


def test_longrope_is_told_on_the_way_in(tiny, tmp_path, capsys):
  path, _ = tiny("phi3_long")
  hf.give(path, epath.Path(tmp_path / "theirs"))
  hf.take(epath.Path(tmp_path / "theirs"), epath.Path(tmp_path / "back"))
  assert "theirs takes the short ones up to" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_not_exported(tiny, tmp_path):
  path, _ = tiny("llama")
  (path / "config.json").write_text("{}")
  with pytest.raises(ValueError, match="damaged"):
    hf.give(path, epath.Path(tmp_path / "theirs"))


def test_orbax_reads_what_is_imported(tiny):
  path, params = tiny("qwen3_tied")
  wanted = ocp.checkpoint_utils.construct_restore_args(
    jax.tree.map(jnp.asarray, params)
  )
  restored = ocp.PyTreeCheckpointer().restore(
    path / "params", restore_args=wanted
  )
  jax.tree.map(np.testing.assert_array_equal, restored, params)
