"""Recurrent models: torch's numbers, packed rows, meshes, what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import families, flops, rnn, rnnsearch
from models.layers import recurrent
from sharding import mesh, rules

STORED = "tests/golden/recurrent.npz"
CELLS = list(recurrent.CELLS)


def tiny(cell: str) -> rnn.Config:
  return rnn.Config(
    vocab_size=48,
    cell=cell,
    d_model=12,
    n_layers=2,
    max_length=16,
    dtype="float32",
  )


@pytest.mark.parametrize("cell", CELLS)
def test_logits_and_gradients_are_those_of_torch(cell):
  """Torch read every text of the packed rows alone.

  `python -m benchmarks.parity.recurrent` stored them.
  """
  with np.load(STORED, allow_pickle=False) as stored:
    theirs, sketches = stored[f"{cell}/logits"], stored[f"{cell}/gradients"]
  config = tiny(cell)
  real = cases.batch(config).segment_ids > 0
  logits, gradients = cases.run(config)
  scale = np.abs(theirs).max()
  np.testing.assert_allclose(
    logits[real], theirs[real], rtol=0, atol=5e-6 * scale
  )
  paths = jax.tree.leaves_with_path(gradients)
  for (path, _), ours, wanted in zip(
    paths, cases.sketch(gradients), sketches, strict=True
  ):
    np.testing.assert_allclose(
      ours,
      wanted,
      rtol=0,
      atol=1e-5 * wanted[0],
      err_msg=jax.tree_util.keystr(path),
    )


@pytest.mark.parametrize("cell", ["lstm"])
def test_eight_devices_give_what_one_gives(cell):
  config = tiny(cell)
  weights = cases.params(config)
  devices = mesh.make(mesh.Config(data=1, fsdp=2, tensor=4))
  with rules.make(devices, "fsdp_tensor").use():
    there = cases.run(config, weights)
  here = cases.run(config, weights)
  real = cases.batch(config).segment_ids > 0
  np.testing.assert_allclose(there[0][real], here[0][real], rtol=0, atol=5e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-5 * np.abs(b).max()
    ),
    there[1],
    here[1],
  )


def test_a_text_that_is_read_backward_is_the_turned_text_read_forward():
  cell, rng = recurrent.CELLS["lstm"], np.random.default_rng(0)
  read = jnp.float32(rng.normal(size=(2, 9, 4, 3)))
  w = jnp.float32(rng.normal(size=(3, 4, 3)))
  segments = jnp.asarray([[1] * 4 + [2] * 5, [7] * 9])

  def said(read, segments, backward):
    return recurrent.scan(
      cell,
      read,
      lambda h: jnp.einsum("bd,dju->bju", h, w),
      recurrent.firsts(segments, backward),
      jnp.ones(segments.shape, bool),
      jnp.zeros((len(read), 3, 2)),
      backward=backward,
    )[0][0]

  turned = said(read[:, ::-1], segments[:, ::-1], False)[:, ::-1]
  np.testing.assert_array_equal(said(read, segments, True), turned)
  # And no text hears another: the second one's end is as if it were alone.
  alone = said(read[:1, 4:], segments[:1, 4:], True)
  np.testing.assert_allclose(said(read, segments, True)[:1, 4:], alone, 1e-6)


def test_the_forget_gate_starts_open():
  config = dataclasses.replace(tiny("lstm"), n_layers=1)
  bias = jax.jit(families.init, static_argnums=0)(config, jax.random.key(0))[
    "stack"
  ]["layers"]["block_0"]
  found = np.asarray(bias["recurrent"]["bias"])[0]
  np.testing.assert_array_equal(
    found, np.float32([0, 1, 0, 0])[:, None] + found * 0
  )


@pytest.mark.parametrize("family", [rnn, rnnsearch])
def test_bf16_is_near_fp32(family):
  """Run and not only compiled: XLA:CPU has no bf16 form of all products."""
  config = family.Config(vocab_size=32, d_model=16, n_layers=1, dtype="float32")
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 32, (8, 16)))
  places = jnp.broadcast_to(jnp.arange(16), ids.shape)
  text = (ids, places, jnp.ones_like(ids))
  beside = {"source": text} if families.reads(config, "source") else {}
  params = cases.params(config)

  def run(config):
    def loss(params):
      hidden, _ = families.build(config).apply(
        {"params": params}, *text, **beside
      )
      return -jax.nn.log_softmax(families.logits(config, params, hidden))[
        ..., 0
      ].mean()

    return jax.jit(jax.grad(loss))(params)

  wide, narrow = run(config), run(dataclasses.replace(config, dtype="bfloat16"))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=0.03 * np.linalg.norm(b)
    ),
    narrow,
    wide,
  )


def test_split_rows_are_refused():
  config = tiny("gru")
  layout = rules.make(mesh.make(mesh.Config(data=1, fsdp=2, context=4)), "fsdp")
  weights = cases.params(config)
  with layout.use(), pytest.raises(ValueError, match="mesh.context=4.*state"):
    jax.eval_shape(lambda p: cases.run(config, p), weights)


@pytest.mark.parametrize(
  ("cell", "n_products"), [("elman", 1), ("lstm", 4), ("gru", 3)]
)
def test_a_token_costs_two_products_of_each_kind(cell, n_products):
  config = tiny(cell)
  per_layer = 2 * 2 * n_products * config.d_model**2
  head = 2 * config.d_model * config.vocab_size
  wanted = config.n_layers * per_layer + head
  counted = flops.forward_per_token(config, 128)
  n_biases = config.n_layers * config.d_model * (n_products + (cell == "gru"))
  assert counted == wanted + 2 * n_biases
