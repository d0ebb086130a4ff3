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
from convert import catalogue, hf  # noqa: E402
from tests.convert.test_hf import assert_same, save  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", cases.CASES)
def test_what_transformers_saves_is_loaded(name, tmp_path):
  config = cases.CASES[name]
  model = theirs_of.build(config)
  said = catalogue.of(config).theirs(config)
  model.config.pad_token_id = said.get("pad_token_id")
  model.save_pretrained(tmp_path / "theirs", max_shard_size="20kB")
  hf.take(epath.Path(tmp_path / "theirs"), epath.Path(tmp_path / "ours"))
  params = jax.tree.map(np.asarray, cases.params(config))
  assert_same(tmp_path / "ours", params)


@pytest.mark.parametrize("name", cases.CASES)
def test_transformers_loads_what_we_write(name, tmp_path):
  config = cases.CASES[name]
  path, _ = save(tmp_path / "ours", config)
  hf.give(path, epath.Path(tmp_path / "theirs"), max_bytes=4000)
  kind = getattr(transformers, type(theirs_of.build(config)).__name__)
  model, said = kind.from_pretrained(
    tmp_path / "theirs", output_loading_info=True, attn_implementation="eager"
  )
  assert not any(said[key] for key in ("unexpected_keys", "mismatched_keys"))
  text = _text(config)
  ours = theirs_of.answers(config, model.eval(), text)
  theirs = theirs_of.answers(config, theirs_of.build(config), text)
  for got, expected in zip(ours, theirs, strict=True):
    got, expected = got.detach().numpy(), expected.detach().numpy()
    # To the bit but for where a file's tensors lie: torch then sums otherwise.
    atol = 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def _text(config):
  """The second row of a case, which is one text."""
  batch = cases.batch(config)
  fields = {
    "tokens": batch.tokens,
    "positions": batch.positions,
    "types": batch.types,
    "source": batch.source and batch.source.tokens,
  }
  return {
    name: torch.tensor(x[1:2]).long()
    for name, x in fields.items()
    if x is not None
  }
