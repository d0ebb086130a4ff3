"""F5: peft loads what we write, and says the same; its golden numbers hold."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks.parity import cases
from convert import peft
from models import checkpoint, families
from models.layers import heads
from tests.convert.test_hf import save
from tests.convert.test_peft import STORED, ask

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
import peft as theirs  # noqa: E402
import torch  # noqa: E402

from benchmarks.parity import adapters, golden, hf  # noqa: E402

pytestmark = pytest.mark.parity


def test_the_golden_numbers_are_theirs():
  stored, made = dict(np.load(STORED)), adapters.make()
  texts = {key for key in made if key.endswith("/config")}
  assert all(stored[key] == made[key] for key in texts)
  assert not golden.differences(
    *({k: x for k, x in a.items() if k not in texts} for a in (stored, made))
  )


@pytest.mark.parametrize("kind", adapters.ADAPTERS)
def test_peft_loads_what_we_write(kind, tmp_path):
  """In by its own files, moved, out again: logits within 1e-5."""
  case, _ = adapters.ADAPTERS[kind]
  base, _ = save(tmp_path / "base", cases.CASES[case])
  first, ours, back = (epath.Path(tmp_path) / n for n in ("a", "b", "c"))
  adapters.build(kind).save_pretrained(str(first), save_embedding_layers=False)
  peft.take(first, base, ours)
  peft.give(ours, back)
  model = theirs.PeftModel.from_pretrained(
    hf.build(cases.CASES[case]), str(back)
  ).eval()
  expected = adapters.logits(model, case)
  got = jax.device_get(ask(*checkpoint.load(ours)))
  np.testing.assert_allclose(got, expected, atol=1e-5 * abs(expected).max())


def test_a_head_that_is_trained_whole_goes_out_and_in(tmp_path):
  """modules_to_save: of a base of words, a class of theirs for labels."""
  config = cases.CASES["llama"]
  base, _ = save(tmp_path / "base", config)
  answering = dataclasses.replace(
    config, heads=heads.Labels(kinds=("texts",), n_labels=3)
  )
  first, ours, back = (epath.Path(tmp_path) / n for n in ("a", "b", "c"))
  settings = theirs.LoraConfig(
    r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS"
  )
  made = theirs.get_peft_model(hf.build(answering), settings)
  rng = np.random.default_rng(0)
  for leaf in made.parameters():
    if leaf.requires_grad:
      leaf.data += torch.tensor(rng.normal(size=leaf.shape), dtype=leaf.dtype)
  made.save_pretrained(str(first))
  peft.take(first, base, ours)
  peft.give(ours, back)
  model = theirs.PeftModel.from_pretrained(hf.build(answering), str(back))
  model.config.pad_token_id = 0
  tokens = np.arange(1, 13).reshape(2, 6)
  with torch.no_grad():
    expected = model.eval()(torch.tensor(tokens)).logits.numpy()
  found, params = checkpoint.load(ours)
  assert found == answering
  places = np.broadcast_to(np.arange(6, dtype=np.int32), (2, 6))
  rows = [
    jax.numpy.asarray(x, "int32") for x in (tokens, places, places * 0 + 1)
  ]
  hidden, _ = families.build(found).apply({"params": params}, *rows)
  got = families.of_texts(found, params, hidden, *rows[1:])[:, 0]
  np.testing.assert_allclose(got, expected, atol=1e-5 * abs(expected).max())
