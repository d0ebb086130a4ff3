"""F5, F4: adapters of peft come in, go out, and say the same.

What peft and bitsandbytes give is in tests/golden/peft.npz.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from jax import numpy as jnp

from benchmarks.parity import cases
from convert import peft
from models import (
  adapters,
  arrays,
  blockwise,
  checkpoint,
  decode,
  families,
  leaves,
  prefix,
)
from models.layers import heads
from tests.convert.test_hf import save

STORED = pathlib.Path(__file__).parent.parent / "golden" / "peft.npz"
KINDS = {
  "lora": "llama",
  "tables": "llama",
  "rslora": "llama",
  "dora": "llama",
  "gpt2": "gpt2",
  "ia3": "llama",
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
  return dict(np.load(STORED))


@pytest.fixture
def theirs(golden, tmp_path):
  """Writes the two files of a kind; extra keys go into the config."""

  def write(kind, **extra):
    folder = epath.Path(tmp_path) / "theirs"
    folder.mkdir()
    config = json.loads(str(golden[f"{kind}/config"])) | extra
    (folder / "adapter_config.json").write_text(json.dumps(config))
    begin = f"{kind}/tensors/"
    tensors = {
      name.removeprefix(begin): x
      for name, x in golden.items()
      if name.startswith(begin)
    }
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").write_bytes(data)
    return folder, tensors

  return write


def ask(config, params):
  tokens = jnp.asarray(cases.batch(config).tokens)
  positions = jnp.broadcast_to(jnp.arange(16), tokens.shape)

  @jax.jit
  def run(params):
    hidden, _ = prefix.apply(
      config, params, tokens, positions, jnp.ones_like(tokens)
    )
    return families.logits(config, params, hidden)

  return run(params)


def lay(out, base, adapter):
  """A checkpoint of an adapter with leaves of chance; gives the leaves."""
  model = checkpoint.config(base)
  scanned = dataclasses.replace(model, scanned=True)
  leaves = arrays.by_path(adapters.own(adapter, scanned)[0])
  rng = np.random.default_rng(0)
  own = {
    n: np.float32(0.4 * rng.normal(size=x.shape)) for n, x in leaves.items()
  }
  parts = [(name, (), x) for name, x in own.items()]
  peft._lay(out, base, model, adapter, leaves, parts)
  return own


@pytest.mark.parametrize("kind", KINDS)
def test_theirs_comes_in_and_goes_out_again(kind, golden, theirs, tmp_path):
  """Logits of peft within 1e-5 of the largest; tensors back to the bit."""
  folder, tensors = theirs(kind)
  base, _ = save(tmp_path / "base", cases.CASES[KINDS[kind]])
  ours, back = epath.Path(tmp_path) / "ours", epath.Path(tmp_path) / "back"
  peft.take(folder, base, ours)
  config, params = checkpoint.load(ours)
  expected = golden[f"{kind}/logits"]
  got = ask(config, params)
  np.testing.assert_allclose(got, expected, atol=1e-5 * abs(expected).max())
  _, plain = checkpoint.load(base)
  assert abs(ask(config, plain) - expected).max() > 0.05 * abs(expected).max()
  peft.give(ours, back)
  again = safetensors.numpy.load(
    (back / "adapter_model.safetensors").read_bytes()
  )
  assert again.keys() == tensors.keys()
  for name, x in tensors.items():
    np.testing.assert_array_equal(again[name], x, err_msg=name)
  said, was = (
    json.loads((f / "adapter_config.json").read_text()) for f in (back, folder)
  )
  for key in ("peft_type", "r", "lora_alpha", "use_rslora", "fan_in_fan_out"):
    assert said.get(key) == was.get(key), key


@pytest.mark.parametrize("kind", ["prompt", "ptuning", "prefix", "projected"])
def test_what_texts_begin_with_is_read_as_theirs(kind, golden):
  """F7: logits of peft, and the same when decoding token by token."""
  config = cases.CASES["llama"]
  begin = f"{kind}/own/"
  theirs = {
    n.removeprefix(begin): x for n, x in golden.items() if n.startswith(begin)
  }
  rows = next(n for n in theirs if n.endswith("embedding.weight"))
  own = {"rows": jnp.asarray(theirs.pop(rows))}
  for i, name in enumerate(sorted({n.rpartition(".")[0] for n in theirs})):
    own[f"w{i}"] = jnp.asarray(theirs[f"{name}.weight"].T)
    own[f"b{i}"] = jnp.asarray(theirs[f"{name}.bias"])
  of = adapters.Prefix if "pre" in kind or "proj" in kind else adapters.Prompt
  network = own["w0"].shape[1] if "w0" in own else None
  adapter = of(n_tokens=5, d_network=network)
  base = jax.tree.map(jnp.asarray, cases.params(config))
  params = adapters.join(
    config=adapter, model=config, own={"prefix": own}, base=base, key=None
  )
  expected = golden[f"{kind}/logits"]
  tokens = jnp.asarray(cases.batch(config).tokens)
  atol = 1e-5 * abs(expected).max()
  np.testing.assert_allclose(ask(config, params), expected, atol=atol)
  assert abs(ask(config, base) - expected).max() > 100 * atol

  single, apart = decode.unrolled(config, params)
  cache = prefix.start(single, apart, 2, 5 + 16)
  np.testing.assert_array_equal(cache.lengths, 5)
  read = jax.jit(decode.prefill, static_argnums=0)
  real = jnp.ones((2, 15), bool)
  _, cache = read(single, apart, tokens[:, :15], real, cache)
  got, cache = read(single, apart, tokens[:, 15:], real[:, :1], cache)
  np.testing.assert_allclose(got, expected[:, -1], atol=atol)
  np.testing.assert_array_equal(cache.lengths, 5 + 16)


@pytest.mark.parametrize("kind", ["prompt", "ptuning", "prefix", "projected"])
def test_what_texts_begin_with_comes_in_and_goes_out(
  kind, golden, theirs, tmp_path
):
  """Logits of peft, from its file, which has no network; back to the bit."""
  folder, tensors = theirs(kind)
  base, _ = save(tmp_path / "base", cases.CASES["llama"])
  ours, back = epath.Path(tmp_path) / "ours", epath.Path(tmp_path) / "back"
  of = adapters.Prompt if kind in ("prompt", "ptuning") else adapters.Prefix
  assert peft.take(folder, base, ours) == of(n_tokens=5)
  config, params = checkpoint.load(ours)
  expected = golden[f"{kind}/logits"]
  got = ask(config, params)
  np.testing.assert_allclose(got, expected, atol=2e-6 * abs(expected).max())
  assert peft.give(ours, back) == 1
  again = safetensors.numpy.load(
    (back / "adapter_model.safetensors").read_bytes()
  )
  assert again.keys() == tensors.keys() == {"prompt_embeddings"}
  np.testing.assert_array_equal(
    again["prompt_embeddings"], tensors["prompt_embeddings"]
  )
  said, was = (
    json.loads((f / "adapter_config.json").read_text()) for f in (back, folder)
  )
  plain = "PREFIX_TUNING" if of is adapters.Prefix else "PROMPT_TUNING"
  assert said.pop("peft_type") == plain
  assert not said.pop("prefix_projection", False)
  said.pop("base_model_name_or_path")
  assert said == {key: was[key] for key in said}


@pytest.mark.parametrize(
  ("adapter", "kind"),
  [
    (adapters.Prompt(n_tokens=3), "PROMPT_TUNING"),
    (adapters.Prompt(n_tokens=3, d_network=12), "P_TUNING"),
    (adapters.Prefix(n_tokens=3), "PREFIX_TUNING"),
    (adapters.Prefix(n_tokens=3, d_network=12), "PREFIX_TUNING"),
  ],
)
def test_ours_goes_out_as_what_its_network_makes(adapter, kind, tmp_path):
  """Leaves come back to the bit where there is none; said is what it was."""
  base, _ = save(tmp_path / "base", cases.CASES["gpt2"])
  ours, theirs, back = (epath.Path(tmp_path) / n for n in ("a", "b", "c"))
  own = lay(ours, base, adapter)
  peft.give(ours, theirs)
  said = json.loads((theirs / "adapter_config.json").read_text())
  assert said["peft_type"] == kind
  network = adapter.d_network is not None
  assert said.get("encoder_hidden_size") == adapter.d_network
  assert said.get("prefix_projection", network) == network
  plain = dataclasses.replace(adapter, d_network=None)
  assert peft.take(theirs, base, back) == plain
  leaves = dict(arrays.read(back / "params"))
  assert leaves.keys() == {"prefix/rows"}
  if not network:
    np.testing.assert_array_equal(leaves["prefix/rows"], own["prefix/rows"])
  made = (checkpoint.load(path)[1]["prefix"] for path in (ours, back))
  for x, y in zip(*map(jax.tree.leaves, made), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  ("kind", "extra", "told"),
  [
    ("ptuning", {"encoder_reparameterization_type": "LSTM"}, "type='LSTM'"),
    ("prefix", {"num_transformer_submodules": 2}, "submodules=2"),
    ("prompt", {"task_type": "SEQ_2_SEQ_LM"}, "task_type='SEQ_2_SEQ_LM'"),
    ("prompt", {"modules_to_save": ["score"]}, "modules_to_save"),
    ("prompt", {"cpt_mask": [1]}, "cpt_mask"),
    ("prompt", {"peft_type": "CPT"}, "peft_type='CPT'"),
    ("prompt", {"num_layers": 3}, "num_layers=3, and it is 2"),
    ("prompt", {"num_virtual_tokens": 4}, "num_virtual_tokens=4, and it is 5"),
    ("prefix", {"num_attention_heads": 4}, "num_attention_heads=4"),
    ("prompt", {"peft_type": "PREFIX_TUNING"}, "token_dim=32, and it is 16"),
    ("prefix", {"token_dim": None, "peft_type": "P_TUNING"}, "heads=2"),
  ],
)
def test_what_a_prompt_cannot_say_is_told(kind, extra, told, theirs, tmp_path):
  folder, _ = theirs(kind, **extra)
  base, _ = save(tmp_path / "base", cases.CASES["llama"])
  with pytest.raises(ValueError, match=told):
    peft.take(folder, base, epath.Path(tmp_path) / "ours")


@pytest.mark.parametrize(
  ("tensors", "told"),
  [
    (
      {"prompt_embeddings": (5, 31)},
      r"\(5, 31\), and the base takes \(5, 32\)",
    ),
    ({"prompt_embeddings": (5, 2, 16)}, "no table"),
    ({"prompt_embeddings": (5, 32), "score.weight": (3, 32)}, "score.weight"),
    ({"embedding.weight": (5, 32)}, "prompt_embeddings is all that is known"),
  ],
)
def test_tensors_that_are_no_prompt_are_told(tensors, told, tmp_path):
  folder = epath.Path(tmp_path) / "theirs"
  folder.mkdir()
  (folder / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
  data = safetensors.numpy.save(
    {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
  )
  (folder / "adapter_model.safetensors").write_bytes(data)
  base, _ = save(tmp_path / "base", cases.CASES["llama"])
  with pytest.raises(ValueError, match=told):
    peft.take(folder, base, epath.Path(tmp_path) / "ours")


@pytest.mark.parametrize(
  ("case", "adapter", "told"),
  [
    ("gemma", adapters.Prompt(), "multiplies its embeddings"),
    ("llama_dynamic", adapters.Prompt(), "rope_scaling.kind='dynamic'"),
    ("falcon_40b", adapters.Prefix(), "all 4 heads"),
    ("deepseek_v2_lite", adapters.Prefix(), "all 4 heads"),
    ("gemma2", adapters.Prefix(), "model.pattern"),
  ],
)
def test_models_that_peft_reads_otherwise_are_told(
  case, adapter, told, tmp_path
):
  base, _ = save(tmp_path / "base", cases.CASES[case])
  lay(epath.Path(tmp_path) / "ours", base, adapter)
  with pytest.raises(ValueError, match=told):
    peft.give(epath.Path(tmp_path) / "ours", epath.Path(tmp_path) / "theirs")


def test_a_prompt_before_a_head_for_labels_is_told(theirs, tmp_path):
  folder, _ = theirs("prompt")
  labels = heads.Labels(kinds=("texts",), n_labels=3)
  config = dataclasses.replace(cases.CASES["llama"], heads=labels)
  base, _ = save(tmp_path / "base", config)
  with pytest.raises(ValueError, match="not beside heads"):
    peft.take(folder, base, epath.Path(tmp_path) / "ours")


def test_pissa_leaves_as_twice_the_rank(tmp_path):
  """What it adds to the base as it was, of all layers at once."""
  config = cases.CASES["llama"]
  for stabilized in (False, True):
    adapter = adapters.Lora(rank=3, init="pissa", stabilized=stabilized)
    base = cases.params(config)
    own = leaves.join(*adapters.begin(adapter, config, base, jax.random.key(0)))
    own = jax.tree.map(lambda x: x, own)
    flat = {n: np.asarray(x) for n, x in arrays.by_path(own).items()}
    rng = np.random.default_rng(0)
    for name in flat:
      if not name.endswith("0") or name.endswith("block_0"):
        flat[name] = flat[name] + np.float32(rng.normal(size=flat[name].shape))
    rank, alpha = 6, adapter.alpha * (2**0.5 if stabilized else 2)
    one = {n.rpartition("/")[2]: x[0] for n, x in flat.items() if "/q/" in n}
    sent = peft._their_lora(
      one, peft._rows(config)["stack/layer_0/attention/q"][1], "-", adapter
    )
    strength = alpha / (rank**0.5 if stabilized else rank)
    theirs = strength * (sent["lora_B.weight"] @ sent["lora_A.weight"]).T
    mine = adapter._strength * (
      np.tensordot(one["a"], one["b"], 1)
      - np.tensordot(one["a0"], one["b0"], 1)
    )
    np.testing.assert_allclose(
      theirs, mine.reshape(theirs.shape), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
  ("extra", "told"),
  [
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ({"bias": "all"}, "bias='all'"),
    ({"peft_type": "VERA"}, "peft_type='VERA'"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
  ],
)
def test_what_is_not_known_is_told(extra, told, theirs, tmp_path):
  folder, _ = theirs("lora", **extra)
  base, _ = save(tmp_path / "base", cases.CASES["llama"])
  with pytest.raises(ValueError, match=told):
    peft.take(folder, base, epath.Path(tmp_path) / "ours")


def test_an_adapter_of_another_model_is_told(theirs, tmp_path):
  folder, _ = theirs("gpt2")
  base, _ = save(tmp_path / "base", cases.CASES["llama"])
  with pytest.raises(ValueError, match="for which the base has no weight"):
    peft.take(folder, base, epath.Path(tmp_path) / "ours")


def test_nf4_is_theirs(golden):
  """Codes and numbers of bitsandbytes, whose blocks are as long as a row's."""
  np.testing.assert_array_equal(blockwise.NF4, golden["nf4/book"])
  np.testing.assert_allclose(
    blockwise.dynamic(), golden["nf4/dynamic"], rtol=1e-6
  )
  w = jnp.float32(golden["nf4/weight"])
  held = blockwise.quantize(w, "nf4")
  np.testing.assert_array_equal(held.values.reshape(-1), golden["nf4/packed"])
  np.testing.assert_array_equal(held.scale.reshape(-1), golden["nf4/scale"])
  np.testing.assert_allclose(
    held.dequantize(jnp.float32), golden["nf4/plain"], rtol=1e-6
  )


def test_double_quantization_is_theirs(golden):
  held = blockwise.quantize(jnp.float32(golden["nf4/weight"]), "nf4", True)
  s = held.scale
  np.testing.assert_allclose(s.mean, golden["nf4/mean"], rtol=1e-6)
  np.testing.assert_allclose(s.scale, golden["nf4/scale_scales"], rtol=1e-5)
  far = s.codes.reshape(-1) != golden["nf4/scale_codes"]
  assert far.mean() < 0.002  # where a scale lies between two numbers
  got = np.asarray(held.dequantize(jnp.float32))
  exact = np.isclose(got, golden["nf4/double"], rtol=1e-5, atol=1e-9)
  assert exact.mean() > 0.998
