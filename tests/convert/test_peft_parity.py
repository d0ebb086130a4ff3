"""F5: peft loads what we write, and says the same; its golden numbers hold."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks.parity import cases
from convert import peft
from models import adapters as kinds
from models import checkpoint, families, prefix
from models.layers import heads
from tests.convert.test_hf import save
from tests.convert.test_peft import STORED, ask, lay

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


OURS = {
  "prompt": kinds.Prompt(n_tokens=5),
  "ptuning": kinds.Prompt(n_tokens=5, d_network=12),
  "prefix": kinds.Prefix(n_tokens=5),
  "projected": kinds.Prefix(n_tokens=5, d_network=12),
}
TOKENS = np.random.default_rng(1).integers(1, 48, (2, 11))


def longer(case):
  """A case with room for what comes before a text."""
  return dataclasses.replace(cases.CASES[case], max_length=32)


def read(path):
  """Our logits of two texts."""
  config, params = checkpoint.load(path)
  positions = np.broadcast_to(np.arange(11), TOKENS.shape)
  rows = [
    jax.numpy.asarray(x, "int32")
    for x in (TOKENS, positions, np.ones_like(TOKENS))
  ]
  hidden, _ = prefix.apply(config, params, *rows)
  return jax.device_get(families.logits(config, params, hidden))


def read_by_theirs(model):
  with torch.no_grad():
    return model.eval()(torch.tensor(TOKENS)).logits.numpy()[:, -11:]


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_peft_begins_texts_as_we_do(case, kind, tmp_path):
  """Ours, out: fp32 logits within 3e-6 of the largest."""
  base, _ = save(tmp_path / "base", longer(case))
  ours, out = epath.Path(tmp_path) / "ours", epath.Path(tmp_path) / "theirs"
  lay(ours, base, OURS[kind])
  peft.give(ours, out)
  model = theirs.PeftModel.from_pretrained(hf.build(longer(case)), str(out))
  expected, got = read_by_theirs(model), read(ours)
  np.testing.assert_allclose(got, expected, atol=3e-6 * abs(expected).max())
  assert abs(read(base) - got).max() > 0.1 * abs(got).max()


def trained_there(config, kind, **extra):
  """Their model with an adapter of their defaults, every leaf moved."""
  of = {
    "prompt": theirs.PromptTuningConfig,
    "ptuning": theirs.PromptEncoderConfig,
    "prefix": theirs.PrefixTuningConfig,
    "projected": theirs.PrefixTuningConfig,
  }
  if kind == "projected":
    extra["prefix_projection"] = True
  settings = of[kind](num_virtual_tokens=5, task_type="CAUSAL_LM", **extra)
  model = theirs.get_peft_model(hf.build(config), settings)
  rng = np.random.default_rng(0)
  for leaf in model.parameters():
    if leaf.requires_grad:
      noise = 0.2 * rng.normal(size=leaf.shape)
      leaf.data += torch.tensor(noise, dtype=leaf.dtype)
  return model


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_we_begin_texts_as_peft_does(case, kind, tmp_path):
  """Theirs, with its networks, in by its files: within 3e-6."""
  base, _ = save(tmp_path / "base", longer(case))
  first, ours = epath.Path(tmp_path) / "theirs", epath.Path(tmp_path) / "ours"
  model = trained_there(longer(case), kind)
  expected = read_by_theirs(model)
  model.save_pretrained(str(first))
  peft.take(first, base, ours)
  got = read(ours)
  np.testing.assert_allclose(got, expected, atol=3e-6 * abs(expected).max())
  assert abs(read(base) - got).max() > 0.1 * abs(got).max()


def test_an_lstm_of_theirs_is_told(tmp_path):
  base, _ = save(tmp_path / "base", longer("llama"))
  model = trained_there(
    longer("llama"), "ptuning", encoder_reparameterization_type="LSTM"
  )
  model.save_pretrained(str(tmp_path / "theirs"))
  with pytest.raises(
    ValueError, match="encoder_reparameterization_type='LSTM'"
  ):
    peft.take(
      epath.Path(tmp_path) / "theirs", base, epath.Path(tmp_path) / "ours"
    )


def test_a_prefix_of_a_decoder_that_reads_a_source_is_told(tmp_path):
  """Theirs keeps what T5's decoder and its cross-attention begin with."""
  base, _ = save(tmp_path / "base", longer("llama"))
  settings = theirs.PrefixTuningConfig(
    num_virtual_tokens=5, task_type="SEQ_2_SEQ_LM"
  )
  model = theirs.get_peft_model(hf.build(cases.CASES["t5"]), settings)
  model.save_pretrained(str(tmp_path / "theirs"))
  with pytest.raises(ValueError, match="num_transformer_submodules=2"):
    peft.take(
      epath.Path(tmp_path) / "theirs", base, epath.Path(tmp_path) / "ours"
    )


def test_an_adapter_of_a_larger_base_is_told(tmp_path):
  base, _ = save(tmp_path / "base", longer("llama"))
  larger = dataclasses.replace(longer("llama"), n_layers=3)
  for kind in OURS:
    folder = epath.Path(tmp_path) / kind
    trained_there(larger, kind).save_pretrained(str(folder))
    with pytest.raises(ValueError, match="num_layers=3, and it is 2"):
      peft.take(folder, base, epath.Path(tmp_path) / "ours")
