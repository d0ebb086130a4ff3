"""RNNsearch beside the paper's formulas; packed pairs, meshes; it learns."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import decode, families, flops, rnnsearch, sampling
from sharding import mesh, rules

CONFIG = rnnsearch.Config(
  vocab_size=20, d_model=8, max_length=32, dtype="float32"
)
SOURCES, TEXTS = ([5, 7, 3, 11, 4], [9, 2]), ([1, 6, 8], [1, 12, 13, 14])


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def gru(p, x, said):
  """One step; x has what else is read added by the caller."""
  r = np.einsum("d,dju->ju", said, p["state"])
  r[2] += p["state_bias"]
  reset, stay = sigmoid(x[0] + r[0]), sigmoid(x[1] + r[1])
  return (1 - stay) * np.tanh(x[2] + reset * r[2]) + stay * said


def read(p, x):
  return np.einsum("d,dju->ju", x, p["input"]) + p["bias"]


def written(params, source, text):
  """Equations of 1409.0473, appendix A, one number after the other."""
  p = jax.tree.map(np.float64, params)
  table = p["embed"]["table"]
  encoder, decoder = p["encoder"]["layer_0"], p["stack"]["layer_0"]
  halves = []
  for name, order in (("ahead", 1), ("behind", -1)):
    said, found = np.zeros(4), []
    for token in source[::order]:
      said = gru(encoder[name], read(encoder[name], table[token]), said)
      found.append(said)
    halves.append(found[::order])
  notes = np.concatenate(halves, axis=-1)
  cross, layer = decoder["cross"], decoder["recurrent"]
  said, logits = np.zeros(8), []
  for token in text:
    x = table[token]
    e = np.tanh(said @ cross["q"] + notes @ cross["k"]) @ cross["score"]
    shares = np.exp(e) / np.exp(e).sum()
    seen = shares @ notes
    more = np.einsum("d,dju->ju", seen, cross["context"])
    said = gru(layer, read(layer, x) + more, said)
    out = decoder["out_bias"] + sum(
      np.einsum("d,dju->ju", part, decoder[f"out_{name}"])
      for name, part in (("token", x), ("said", said), ("seen", seen))
    )
    logits.append(p["head"]["table"] @ out.max(0))
  return np.array(logits)


def packed(texts, length):
  """Tokens, positions and segments of texts in one row, and that row again."""
  ids = np.zeros((3, 2, length), np.int32)
  at = 0
  for number, text in enumerate(texts, start=1):
    end = at + len(text)
    row = np.array([text, range(len(text)), [number] * len(text)])
    ids[:, :, at:end] = row[:, None]
    at = end
  return jnp.asarray(ids)


def logits(config, params, texts, sources, length=12):
  hidden, _ = families.build(config).apply(
    {"params": params},
    *packed(texts, length),
    source=tuple(packed(sources, length + 4)),
  )
  return families.logits(config, params, hidden)


def test_packed_pairs_are_what_the_paper_says_of_each():
  config = dataclasses.replace(CONFIG, scanned=False)
  params = cases.params(config)
  found = jax.jit(lambda p: logits(config, p, TEXTS, SOURCES))(params)
  wanted = np.concatenate(
    [written(params, s, t) for s, t in zip(SOURCES, TEXTS, strict=True)]
  )
  scale = np.abs(wanted).max()
  for row in found:
    np.testing.assert_allclose(row[:7], wanted, rtol=0, atol=5e-6 * scale)
  assert np.isfinite(found).all()  # of padding, too


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
  params = cases.params(CONFIG)

  @jax.jit
  def run(params):
    def loss(params):
      found = logits(CONFIG, params, TEXTS, SOURCES)[:, :7]
      return (found**2).sum(), found

    return jax.grad(loss, has_aux=True)(params)

  grads, here = run(params)
  jax.clear_caches()
  devices = mesh.make(mesh.Config(data=1, fsdp=2, tensor=4))
  with rules.make(devices, "fsdp_tensor").use():
    there_grads, there = jax.jit(run.__wrapped__)(params)
  np.testing.assert_allclose(there, here, rtol=0, atol=5e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-7
    ),
    there_grads,
    grads,
  )


def test_an_odd_width_is_refused():
  with pytest.raises(ValueError, match="d_model=7 is odd"):
    dataclasses.replace(CONFIG, d_model=7)


def test_flops_are_those_of_the_products():
  """Counted by hand for a source twice as long as the text."""
  d, length = CONFIG.d_model, 16
  encoder = 2 * (3 * d * d // 2 + 3 * (d // 2) ** 2) + 2 * 3 * d // 2 * 1
  biases_encoder = 2 * (d // 2)  # state_bias of both
  keys = d * d
  decoder = 3 * d * d * 3 + d * d + d + 2 * 3 * d * d + 3 * d + d + 2 * d
  head = CONFIG.vocab_size * d
  attention = 4 * d * 2 * length
  wanted = 2 * (2 * (encoder + biases_encoder + keys) + decoder + head)
  found = flops.forward_per_token(CONFIG, length, 2 * length)
  assert found == wanted + attention


@pytest.mark.slow
def test_it_learns_to_turn_digits_around():
  """Of 2,000 strings that it never saw, more than 99 % to the last digit."""
  bos, eos, length = 1, 2, 12
  config = rnnsearch.Config(
    vocab_size=16, d_model=64, max_length=32, dtype="float32"
  )
  rng = np.random.default_rng(0)

  def draw(n):
    digits = rng.integers(3, 13, (n, length))
    sizes = rng.integers(4, length + 1, n)
    return [list(map(int, d[:k])) for d, k in zip(digits, sizes, strict=True)]

  def batch(texts):
    turned = [[bos, *text[::-1], eos] for text in texts]
    source, read = decode.pad(texts, length)
    tokens, real = decode.pad(turned, length + 2)
    places = [
      np.broadcast_to(np.arange(x.shape[1], dtype=np.int32), x.shape)
      for x in (source, tokens)
    ]
    ahead = (source, places[0], read.astype(np.int32))
    text = (tokens[:, :-1], places[1][:, :-1], real[:, 1:].astype(np.int32))
    return ahead, text, tokens[:, 1:]

  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(5e-3, 1500)),
  )

  @jax.jit
  def step(params, state, batch):
    ahead, text, targets = batch

    def loss(params):
      hidden, _ = families.build(config).apply(
        {"params": params}, *text, source=ahead
      )
      nll = optax.softmax_cross_entropy_with_integer_labels(
        families.logits(config, params, hidden), targets
      )
      return (nll * text[2]).sum() / text[2].sum()

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, value

  params = families.init(config, jax.random.key(0))
  state = optimizer.init(params)
  for _ in range(1500):
    params, state, _ = step(params, state, batch(draw(64)))
  texts = draw(2000)
  found = decode.generate(
    config,
    params,
    [[bos]] * len(texts),
    sampling.Config(temperature=0.0, max_tokens=length + 1),
    [eos],
    sources=texts,
  )
  right = [f == [*t[::-1], eos] for f, t in zip(found, texts, strict=True)]
  assert np.mean(right) > 0.99
