"""Heads of decoders against those of `transformers`, with the same weights.

Ours read packed rows; theirs read each text by itself, padded on either side.
"""

import dataclasses
import inspect

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import families
from models.layers import heads
from train.objectives import labels

pytest.importorskip("transformers")
import torch  # noqa: E402

from benchmarks.parity import hf  # noqa: E402
from convert import catalogue, tensors  # noqa: E402
from convert.settings import Settings  # noqa: E402

pytestmark = pytest.mark.parity

OF_TEXTS = (
  "llama mixtral qwen3 deepseek_v2 gpt2 gemma2 gemma3 olmo2 phi3 stablelm "
  "pythia opt bloom mpt falcon_7b"
).split()
OF_TOKENS = (
  "llama mixtral qwen3 gpt2 gemma2 phi3 stablelm pythia bloom mpt falcon_7b"
).split()


def model_of(name: str, kind: str, n_labels: int) -> families.Config:
  config = cases.CASES[name]
  config = dataclasses.replace(
    config, heads=heads.Labels(kinds=(kind,), n_labels=n_labels)
  )
  if hasattr(config, "experts"):  # theirs leave the routers' losses out
    plain = dict(balance_weight=0.0, z_weight=0.0)
    experts = dataclasses.replace(config.experts, **plain)
    config = dataclasses.replace(config, experts=experts)
  return config


def ours(config, batch, of):
  """The mean loss of the objective and its gradients."""
  objective = labels.make(labels.Config(of=of), config)

  def loss(params, batch):
    total, weight, _ = objective(params, batch, None)
    return total / weight

  return jax.jit(jax.value_and_grad(loss))(cases.params(config), batch)


def batch_of(config):
  """Three texts in two rows; no token is 0, which is padding to theirs."""
  batch = cases.batch(config)
  return batch.replace(tokens=np.maximum(batch.tokens, 1))


def texts_of(batch) -> list[tuple[int, np.ndarray]]:
  """Row and places of every text."""
  return [
    (row, np.nonzero(batch.segment_ids[row] == segment)[0])
    for row in range(2)
    for segment in sorted({*batch.segment_ids[row].tolist()} - {0})
  ]


def padded(model, batch, side: str) -> dict[str, torch.Tensor]:
  """What theirs take: all texts, one a row."""
  found = texts_of(batch)
  tokens = np.zeros((len(found), 16), np.int64)
  mask = np.zeros_like(tokens)
  for i, (row, where) in enumerate(found):
    n = len(where)
    here = np.s_[i, :n] if side == "right" else np.s_[i, 16 - n :]
    tokens[here], mask[here] = batch.tokens[row, where], 1
  given = dict(
    input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask)
  )
  if "position_ids" in inspect.signature(model.forward).parameters:
    places = np.maximum(mask.cumsum(1) - 1, 0)
    given["position_ids"] = torch.tensor(places)
  return given


def gradients_of(config, model):
  found = {
    name: np.zeros(p.shape) if p.grad is None else p.grad.numpy()
    for name, p in model.named_parameters()
  }
  return tensors.from_theirs(config, found)


def assert_close(path, found, wanted):
  np.testing.assert_allclose(
    found,
    wanted,
    rtol=0,
    atol=2e-5 * np.abs(wanted).max() + 1e-7,
    err_msg=jax.tree_util.keystr(path),
  )


def check(config, model, loss, gradients, their_loss):
  """The loss within 5e-6 of itself, gradients within 2e-5 of the largest."""
  np.testing.assert_allclose(loss, their_loss.item(), rtol=5e-6)
  model.zero_grad()
  their_loss.backward()
  theirs = gradients_of(config, model)
  jax.tree.map_with_path(assert_close, gradients, theirs)


@pytest.mark.parametrize("name", OF_TEXTS)
def test_what_is_said_of_a_text_is_what_transformers_say(name):
  config = model_of(name, "texts", 3)
  batch, model = batch_of(config), hf.build(config)
  model.config.pad_token_id = model.config.get_text_config().pad_token_id = 0
  wanted = [0, 2, 1]
  targets, weights = np.zeros((2, 2, 16), np.int32)
  for label, (row, where) in zip(wanted, texts_of(batch), strict=True):
    targets[row, where[0]], weights[row, where[0]] = label, 1
  batch = batch.replace(targets=targets, weights=np.float32(weights))
  loss, gradients = ours(config, batch, "texts")
  for side in ("right", "left"):
    out = model(
      **padded(model, batch, side), labels=torch.tensor(wanted), use_cache=False
    )
    check(config, model, loss, gradients, out.loss)


@pytest.mark.parametrize("name", OF_TOKENS)
def test_what_is_said_of_a_token_is_what_transformers_say(name):
  config = model_of(name, "tokens", 5)
  batch, model = batch_of(config), hf.build(config)
  targets = batch.targets % 5
  batch = batch.replace(targets=targets)
  loss, gradients = ours(config, batch, "tokens")
  asked = np.full((3, 16), -100)
  for i, (row, where) in enumerate(texts_of(batch)):
    asked[i, : len(where)] = targets[row, where]
  given = padded(model, batch, "right")
  logits = model(**given, use_cache=False).logits
  theirs = torch.nn.functional.cross_entropy(
    logits.flatten(0, 1), torch.tensor(asked).flatten()
  )
  check(config, model, loss, gradients, theirs)


def test_a_number_is_met_as_transformers_meet_it():
  config = model_of("llama", "texts", 1)
  batch, model = batch_of(config), hf.build(config)
  model.config.pad_token_id = 0
  model.config.problem_type = "regression"
  wanted = np.array([0.25, -2.0, 1.5], np.float32)
  targets, weights = np.zeros((2, 2, 16), np.int32)
  for number, (row, where) in zip(wanted, texts_of(batch), strict=True):
    targets[row, where[0]] = number.view(np.int32)
    weights[row, where[0]] = 1
  batch = batch.replace(targets=targets, weights=np.float32(weights))
  loss, gradients = ours(config, batch, "measure")
  out = model(**padded(model, batch, "left"), labels=torch.tensor(wanted))
  check(config, model, loss, gradients, out.loss)


@pytest.mark.parametrize(
  ("name", "kind"),
  [(name, "texts") for name in OF_TEXTS]
  + [(name, "tokens") for name in OF_TOKENS],
)
def test_their_class_leads_there_and_back(name, kind):
  config = model_of(name, kind, 3)
  said = catalogue.theirs(config)
  assert catalogue.read(Settings(dict(said))).heads == config.heads
  params = jax.tree.map(jnp.asarray, cases.params(config))
  back = tensors.from_theirs(config, tensors.to_theirs(config, params))
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_class_that_they_lack_is_told():
  config = model_of("opt", "tokens", 3)
  with pytest.raises(ValueError, match="no such class beside OPTForCausalLM"):
    catalogue.theirs(config)
