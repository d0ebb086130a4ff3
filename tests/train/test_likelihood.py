"""Likelihoods of requests, against plain forward passes one by one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from data import tokenizer as tokenizers
from models import adapters, families, prefix
from sharding import mesh, rules
from train.evaluators import likelihood, options, subject, task, texts
from train.evaluators.likelihood import Request

BYTES = tokenizers.train(tokenizers.Config(kind="bytes", vocab_size=259), [])
MESHES = {
  "alone": (mesh.Config(data=1), ("dp",), 1),
  "data": (mesh.Config(data=8), ("dp",), 8),
  "tensor": (mesh.Config(data=2, fsdp=2, tensor=2), ("fsdp_tensor",), 8),
  "zigzag": (
    mesh.Config(data=2, context=4),
    ("fsdp", "auto", "ring", "zigzag"),
    8,
  ),
}


def make_subject(model, params, where="alone", batch_tokens=256):
  config, settings, n = MESHES[where]
  layout = rules.make(mesh.make(config, jax.devices()[:n]), *settings)
  shapes, axes = families.abstract(model), families.axes(model)
  placed = jax.device_put(params, layout.shardings(axes, shapes))
  return subject.Subject(model, placed, BYTES, layout, batch_tokens)


@pytest.fixture(scope="module")
def random_model(tiny):
  return tiny, families.init(tiny, jax.random.key(3))


@pytest.mark.slow
def test_a_prompt_that_was_learnt_is_read_first(random_model):
  """As in training; without it the answers are others."""
  model, params = random_model
  prompt = adapters.CONFIGS["prompt"](n_tokens=3)
  own, _ = adapters.begin(prompt, model, params, jax.random.key(1))
  own["prefix"] = jax.tree.map(lambda x: 30 * x, own["prefix"])
  joined = adapters.join(prompt, model, own, params, None)
  who = dataclasses.replace(make_subject(model, params), params=joined)
  assert who.longest == model.max_length - 3
  ids = (1, 70, 80, 90, 100)
  ((found, _),) = likelihood.answer(who, [Request(ids, 2)])
  ((bare, _),) = likelihood.answer(
    make_subject(model, params), [Request(ids, 2)]
  )
  row = jnp.array([ids[:-1]])
  hidden, _ = prefix.apply(
    model, joined, row, jnp.arange(4)[None], jnp.ones_like(row)
  )
  log_p = jax.nn.log_softmax(families.logits(model, joined, hidden)[0])
  wanted = log_p[2, ids[3]] + log_p[3, ids[4]]
  assert found == pytest.approx(float(wanted), rel=1e-5)
  assert abs(found - bare) > 1e-3  # and 1e-5 of it is the agreement
  with pytest.raises(ValueError, match="give mesh.context=1"):
    dataclasses.replace(make_subject(model, params, "zigzag"), params=joined)


@pytest.fixture(scope="module")
def requests():
  rng = np.random.default_rng(0)
  found = []
  for n in (2, 3, 9, 17, 18, 33, 40, 65, 65):
    ids = tuple(int(i) for i in rng.integers(3, 259, n))
    found.append(Request(ids, int(rng.integers(1, n))))
  return found


@functools.partial(jax.jit, static_argnums=0)
def plain_logits(model, params, ids):
  hidden, _ = families.build(model).apply(
    {"params": params},
    ids,
    jnp.arange(ids.shape[1])[None],
    jnp.ones_like(ids),
  )
  return families.logits(model, params, hidden)


def plain_log_p(model, params, ids):
  """Of every token but the first, in float64, of a row without padding."""
  ids = np.array([ids])
  logits = np.float64(plain_logits(model, params, ids[:, :-1])[0])
  top = logits.max(-1, keepdims=True)
  log_z = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
  targets = ids[0, 1:]
  at = logits[np.arange(len(targets)), targets]
  return at - log_z, targets == logits.argmax(-1)


@pytest.fixture(scope="module")
def expected(random_model, requests):
  found = []
  for request in requests:
    log_p, best = plain_log_p(*random_model, request.ids)
    asked = slice(len(log_p) - request.n_asked, None)
    found.append((log_p[asked].sum(), bool(best[asked].all())))
  return found


@pytest.mark.parametrize(
  "where, batch_tokens",
  [
    ("alone", 64),
    ("alone", 1024),
    ("data", 512),
    ("tensor", 512),
    ("zigzag", 512),
  ],
)
def test_answers_are_those_of_rows_alone(
  where, batch_tokens, random_model, requests, expected
):
  """E4: whatever the batch, the padding and the mesh."""
  who = make_subject(*random_model, where, batch_tokens)
  found = likelihood.answer(who, requests)
  np.testing.assert_allclose(
    [a.log_p for a in found], [e[0] for e in expected], rtol=1e-6
  )
  assert [a.greedy for a in found] == [e[1] for e in expected]


def test_what_is_likeliest_is_said_to_be(random_model):
  model, params = random_model
  ids = [7, 8, 9]
  for _ in range(3):
    ids.append(
      int(plain_logits(model, params, np.array([ids]))[0, -1].argmax())
    )
  who = make_subject(model, params)
  other = [*ids[:-1], (ids[-1] + 1) % 264]
  asked = [Request(tuple(ids), 3), Request(tuple(other), 3)]
  assert [a.greedy for a in likelihood.answer(who, asked)] == [True, False]


class Pairs(type(BYTES)):
  """A tokenizer that joins a space with a P, i with s, and adds no BOS."""

  start = ()

  def encode(self, text: str) -> list[int]:
    found = []
    while text:
      n = 2 if text[:2] in (" P", "is") else 1
      found.append(hash_of(text[:n]))
      text = text[n:]
    return found


def hash_of(piece):
  return 3 + sum(map(ord, piece)) % 250


def test_context_and_continuation_are_read_together(random_model):
  """E2: one BOS, none where the tokenizer begins without; joint pieces."""
  who = make_subject(*random_model)
  bare = dataclasses.replace(who, tokenizer=Pairs())
  h = hash_of
  assert likelihood.continuation(bare, "it is", " Paris") == Request(
    (h("i"), h("t"), h(" "), h("is"), h(" P"), h("a"), h("r"), h("is")), 4
  )
  # White space at the end of the context goes to the continuation.
  same = likelihood.continuation(bare, "it is ", "Paris")
  assert same == likelihood.continuation(bare, "it is", " Paris")
  assert likelihood.continuation(bare, "", "at") == Request(
    (1, h("a"), h("t")), 2
  )
  found = likelihood.continuation(who, "ab", "c")
  assert found == Request((1, *BYTES.encode("abc")), 1)
  assert likelihood.continuation(who, "", "c").ids == (1, *BYTES.encode("c"))


def test_what_is_too_long_is_cut_on_the_left_and_said(random_model):
  """E2: the window is the model's 64 tokens and the one that is asked last."""
  who = make_subject(*random_model)
  found = likelihood.continuation(who, "x" * 100, "yz")
  assert found == Request(tuple(BYTES.encode("x" * 63 + "yz")), 2, 38)
  with pytest.raises(ValueError, match="65 tokens .* 1 to 64"):
    likelihood.continuation(who, "x", "y" * 65)
  with pytest.raises(ValueError, match="is 0 tokens"):
    likelihood.continuation(who, "x", "")


@pytest.mark.parametrize("n", [1, 5, 8, 9, 23, 24])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_ask_for_each_token_once(n, stride):
  ids = list(range(100, 100 + n))
  found = list(likelihood.windows(ids, 1, 8, stride))
  asked = [i for w in found for i in w.ids[-w.n_asked :]]
  assert asked == ids
  for before, window in zip(found, found[1:], strict=False):
    assert len(window.ids) == 9 and len(before.ids) <= 9
    end = ids.index(window.ids[-1]) + 1
    assert list(window.ids) == [1, *ids][end - 8 : end + 1]
  assert found[0].ids[0] == 1


def test_overlapping_windows_leave_less_to_be_told(random_model):
  """E4: a stride of one gives every token all the context there is room for."""
  model, params = random_model
  who = make_subject(model, params)
  text = "the cat sees the dog, and the dog hears the cat. " * 2
  ids = [1, *BYTES.encode(text)]
  for stride in (1, 16):
    config = task.Config(
      kind="text",
      rows="-",
      metrics=("bits_per_byte",),
      windows=task.Windows(length=16, stride=stride),
    )
    asked = task.make(
      "text", config, [{"t": text}], lambda r: {"prompt": r["t"]}
    )
    (record,) = texts.ask(who, asked, likelihood.at_once)
    total, end = 0.0, 16
    total += plain_log_p(model, params, ids[:17])[0].sum()
    while end < len(ids) - 1:
      n = min(stride, len(ids) - 1 - end)
      end += n
      total += plain_log_p(model, params, ids[end - 16 : end + 1])[0][-n:].sum()
    assert record["log_p"] == pytest.approx(total, rel=1e-6)
    assert record["n_bytes"] == len(text) == record["n_tokens"]


def planted(tiny, log_p_VV):
  """A model whose next token depends on the last one alone, as is told."""
  n = tiny.vocab_size
  model = dataclasses.replace(tiny, d_model=n, n_layers=1)
  params = jax.tree.map(jnp.zeros_like, families.init(model, jax.random.key(0)))
  params["embed"]["table"] = 1000 * jnp.eye(n)  # the epsilon is lost in it
  params["norm"]["scale"] = jnp.ones(n)
  # The norm makes a one-hot vector sqrt(n) long.
  params["head"]["table"] = jnp.asarray(log_p_VV.T / np.sqrt(n), jnp.float32)
  return model, params


def test_a_planted_model_gets_its_exact_score(tiny):
  """E3: who is right, by likelihood and per byte, is known beforehand."""
  n = tiny.vocab_size
  table = np.full((n, n), np.log(1e-4))

  def plant(pair, p):
    table[BYTES.encode(pair)[0], BYTES.encode(pair)[1]] = np.log(p)

  for pair, p in (("ab", 0.5), ("ac", 0.3), ("cc", 0.9), ("bb", 0.01)):
    plant(pair, p)
  rest = n - (np.exp(table) > 2e-4).sum(1)
  left = 1 - np.where(np.exp(table) > 2e-4, np.exp(table), 0).sum(1)
  table = np.where(np.exp(table) > 2e-4, table, np.log(left / rest)[:, None])
  who = make_subject(*planted(tiny, table))
  rows = [
    {"q": "xa", "o": ("b", "c"), "right": 0},  # .5 against .3
    {"q": "xa", "o": ("b", "c"), "right": 1},
    {"q": "xa", "o": ("b", "ccc"), "right": 0},  # .5 against .243 for 3 bytes
    {"q": "xa", "o": ("b", "ccc"), "right": 1},  # -.69 against -.47 a byte
  ]
  config = task.Config(
    kind="choice", rows="-", metrics=("acc", "acc_norm", "mass"), joint=""
  )
  asked = task.make(
    "planted",
    config,
    rows,
    lambda r: {"prompt": r["q"], "options": r["o"], "right": (r["right"],)},
  )
  records = options.ask(who, asked, likelihood.at_once)
  p = [[0.5, 0.3]] * 2 + [[0.5, 0.3 * 0.9**2]] * 2
  np.testing.assert_allclose(
    [r["log_p"] for r in records], np.log(p), rtol=0, atol=2e-6
  )
  scores = [r["scores"] for r in records]
  assert [s["acc"] for s in scores] == [1, 0, 1, 0]
  assert [s["acc_norm"] for s in scores] == [1, 0, 0, 1]
  np.testing.assert_allclose(
    [s["mass"] for s in scores],
    [0.5 / 0.8, 0.3 / 0.8, 0.5 / 0.743, 0.243 / 0.743],
    rtol=1e-5,
  )


def test_stages_are_refused(tiny):
  layout = rules.make(mesh.make(mesh.Config(stage=2, data=4)), "dp")
  with pytest.raises(ValueError, match="mesh.stage=2.*Give mesh.stage=1"):
    subject.Subject(tiny, {}, BYTES, layout, 64)
