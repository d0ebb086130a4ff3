"""X1: what transformers saves we load, what we write it loads; tokenizers too."""

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks.parity import cases

pytest.importorskip("transformers")
import torch  # noqa: E402
import transformers  # noqa: E402

from benchmarks.parity import hf as theirs_of  # noqa: E402
from convert import hf  # noqa: E402
from tests.convert.test_hf import NTK, assert_same, save  # noqa: E402

pytestmark = pytest.mark.parity
ONE_WAY = [name for name in cases.CASES if name != NTK]


@pytest.mark.parametrize("name", ONE_WAY)
def test_what_transformers_saves_is_loaded(name, tmp_path):
  config = cases.CASES[name]
  model = theirs_of.build(config)
  model.save_pretrained(tmp_path / "theirs", max_shard_size="20kB")
  hf.take(epath.Path(tmp_path / "theirs"), epath.Path(tmp_path / "ours"))
  params = jax.tree.map(np.asarray, cases.params(config))
  assert_same(tmp_path / "ours", params)


@pytest.mark.parametrize("name", ONE_WAY)
def test_transformers_loads_what_we_write(name, tmp_path):
  config = cases.CASES[name]
  path, _ = save(tmp_path / "ours", config)
  hf.give(path, epath.Path(tmp_path / "theirs"), max_bytes=4000)
  kind = getattr(transformers, type(theirs_of.build(config)).__name__)
  model, said = kind.from_pretrained(
    tmp_path / "theirs", output_loading_info=True, attn_implementation="eager"
  )
  assert not any(said[key] for key in ("unexpected_keys", "mismatched_keys"))
  tokens = torch.tensor(cases.batch(config).tokens, dtype=torch.long)
  expected = theirs_of.build(config)(tokens).logits.detach().numpy()
  np.testing.assert_array_equal(model(tokens).logits.detach().numpy(), expected)
