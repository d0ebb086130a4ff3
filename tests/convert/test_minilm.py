"""all-MiniLM-L6-v2 from its package: the sentence embeddings of torch.

The golden figures were made by torch and transformers in fp32.
"""

import dataclasses
import pathlib

import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from convert import fetch, hf
from data import tokenizer as tokenizers
from models import bert, checkpoint, families
from models.layers import heads

pytestmark = pytest.mark.real_weights
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "minilm.npz"
PACKAGES = epath.Path(__file__).parent.parent.parent / "runs" / "packages"
SENTENCES = ["A man is eating food.", "Someone is having a meal."]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """A checkpoint, as `convert.hf import` makes it."""
  try:
    folder = fetch.take("all_minilm_l6_v2", PACKAGES)
  except fetch.Unreachable as error:
    pytest.skip(str(error))  # no network; another digest is a failure
  out = epath.Path(tmp_path_factory.mktemp("minilm")) / "ours"
  hf.take(folder, out, "float32")
  return out


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN, allow_pickle=False) as arrays:
    return dict(arrays)


def test_sentences_have_their_ids(path, golden):
  """[CLS] and [SEP] are the ends of a text."""
  tokenizer = tokenizers.load(path)
  ids = [[*tokenizer.prompt(s), tokenizer.eos_id] for s in SENTENCES]
  np.testing.assert_array_equal(ids, golden["ids"])
  assert golden["mask"].all()


def test_sentence_embeddings_are_those_of_torch(path, golden):
  config, params = checkpoint.load(path)
  preset = bert.PRESETS["all_minilm_l6_v2"]
  assert config == dataclasses.replace(preset, dtype="float32")
  ids, real = (jnp.asarray(golden[x], jnp.int32) for x in ("ids", "mask"))
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
  hidden, _ = families.build(config).apply(
    {"params": params}, ids, positions, real
  )
  np.testing.assert_allclose(
    hidden[..., :16], golden["hidden_first16"], rtol=0, atol=5e-6
  )
  found = heads.mean(hidden, real)[:, 0]
  found /= np.linalg.norm(found, axis=1, keepdims=True)
  np.testing.assert_allclose(found, golden["emb"], rtol=0, atol=1e-6)
