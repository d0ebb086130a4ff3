"""Word vectors: the papers' formulas in numpy, and structure that was planted."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from configs import door
from data import cooccurrence, words
from models import manifest
from models.classic import subwords, vectors
from train import embed
from train.core import rows
from train.objectives import glove, word2vec

RNG = np.random.default_rng(0)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_loss_and_gradients_are_those_of_the_paper():
  """1310.4546, equation 4, with the mean of a bag for the input."""
  found, out = RNG.normal(size=(4, 3, 6)), RNG.normal(size=(4, 5, 6))
  is_row = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 1, 1]], bool)
  counts = RNG.random((4, 5)) < 0.8
  counts[:, 0] = True

  def loss(found, out):
    return word2vec.negative_sampling(
      found, jnp.asarray(is_row), out, jnp.asarray(counts)
    ).sum()

  value, grads = jax.value_and_grad(loss, (0, 1))(
    jnp.float32(found), jnp.float32(out)
  )
  wanted, d_found, d_out = 0.0, np.zeros_like(found), np.zeros_like(out)
  for b in range(4):
    h = found[b, is_row[b]].mean(0)
    d_h = np.zeros(6)
    for k in np.flatnonzero(counts[b]):
      is_true = float(k == 0)
      p = sigmoid(h @ out[b, k])
      wanted -= np.log(p if is_true else 1 - p)
      d_h += (p - is_true) * out[b, k]
      d_out[b, k] = (p - is_true) * h
    d_found[b, is_row[b]] = d_h / is_row[b].sum()
  np.testing.assert_allclose(value, wanted, rtol=2e-6)
  np.testing.assert_allclose(grads[0], d_found, atol=2e-6)
  np.testing.assert_allclose(grads[1], d_out, atol=2e-6)


def test_words_are_drawn_by_the_power_of_their_counts():
  counts = np.array([1000, 100, 10, 1])
  drawn = np.bincount(word2vec.drawn_from(counts, 0.75), minlength=4)
  share = counts**0.75 / (counts**0.75).sum()
  np.testing.assert_allclose(drawn / drawn.sum(), share, atol=2e-6)


def test_what_goes_with_a_bag_is_no_counterexample_of_it():
  fixed = {"parts": jnp.arange(2)[:, None], "slots": jnp.ones(8, jnp.int32)}
  bags, targets = jnp.array([[0], [0], [-1]]), jnp.array([1, 0, -1])
  ids, loss = word2vec.objective(3)(fixed, (bags, targets), jax.random.key(0))
  np.testing.assert_array_equal(ids["in"], bags)
  np.testing.assert_array_equal(
    ids["out"], [[1] * 4, [0] + [1] * 3, [-1] + [1] * 3]
  )
  zeros = {"in": jnp.zeros((3, 1, 2)), "out": jnp.zeros((3, 4, 2))}
  value, weight = loss(zeros)
  # One pair without counterexamples, one with three, one that is none.
  np.testing.assert_allclose(value, 5 * np.log(2), rtol=1e-6)
  assert weight == 2


def test_a_step_moves_the_rows_that_are_named_as_adagrad_does():
  table = RNG.normal(size=(5, 3))
  weights = RNG.normal(size=(4, 3))
  at = np.array([3, 1, 3, rows.NONE])

  def loss(found):
    return (found["t"] ** 2 * weights).sum(), jnp.float32(4)

  state = rows.begin({"t": jnp.float32(table)}, 0.5)
  state, (value, _) = rows.update(
    state, {"t": jnp.asarray(at)}, loss, jnp.float32(0.1)
  )
  wanted, squares = table.copy(), np.full((5, 3), 0.5)
  grads = 2 * table[at[:3]] * weights[:3]
  for i, g in zip(at, grads, strict=False):
    squares[i] += g**2
  for i, g in zip(at, grads, strict=False):
    wanted[i] -= 0.1 * g / np.sqrt(squares[i])
  np.testing.assert_allclose(state.tables["t"], wanted, rtol=2e-6)
  np.testing.assert_allclose(state.squares["t"], squares, rtol=2e-6)
  real = (table[at[:3]] ** 2 * weights[:3]).sum()
  np.testing.assert_allclose(value, real, rtol=2e-6)


N_GROUPS, N_EACH = 10, 8


def planted(n_texts=600) -> words.Corpus:
  """Every text has words of one group; their names begin alike."""
  stems = ["".join(s) for s in itertools.product("kmt", "aou", "rln")]
  rng = np.random.default_rng(1)
  texts = [
    [f"{stems[g] * 2}{i}" for i in rng.integers(0, N_EACH, 24)]
    for g in rng.integers(0, N_GROUPS, n_texts)
  ]
  return words.index(texts, min_count=1, max_words=1000)


def trained(config: word2vec.Config, corpus, epochs: int) -> vectors.Vectors:
  how = rows.Config(epochs=epochs, batch=256, lr=0.1)
  state, fixed = word2vec.begin(config, corpus, jax.random.key(0))
  ask = word2vec.objective(config.n_negatives)
  for i, (_, block) in enumerate(word2vec.blocks(config, corpus, how)):
    state, _ = rows.run(
      ask, state, fixed, block, jnp.float32(how.lr), jax.random.key(i)
    )
  return word2vec.vectors(config, corpus, state)


def hits(found: vectors.Vectors) -> float:
  """The share of nearest words that are of the same group."""
  same = [
    near[:6] == word[:6]
    for word in found.words
    for near, _ in found.nearest(found.of(word), N_EACH - 1, (word,))
  ]
  return float(np.mean(same))


SMALL = word2vec.Config(d_model=24, window=4, subsample=0.0)


@pytest.mark.parametrize("kind", ["skipgram", "cbow"])
def test_words_of_a_group_come_to_lie_together(kind):
  config = dataclasses.replace(SMALL, kind=kind)
  assert hits(trained(config, planted(), epochs=4)) > 0.95


def test_an_unseen_word_lies_where_its_parts_do():
  parts = subwords.Config(shortest=3, longest=5, n_buckets=3000)
  found = trained(
    dataclasses.replace(SMALL, subwords=parts), planted(), epochs=2
  )
  assert hits(found) > 0.95
  stems = sorted({word[:6] for word in found.words})
  near = [found.nearest(found.of(f"{s}xyz"), 1)[0][0][:6] for s in stems]
  assert near == stems


@pytest.mark.parametrize("kind", ["skipgram", "cbow"])
def test_an_epoch_reads_every_pair_once(kind):
  """Windows of one word are drawn without chance."""
  config = dataclasses.replace(SMALL, kind=kind, window=1)
  corpus = planted(30)
  how = rows.Config(epochs=2, batch=7)
  dones, blocks = zip(*word2vec.blocks(config, corpus, how), strict=True)
  bags, targets = (
    np.concatenate([b.reshape(-1, *b.shape[2:]) for b in part])
    for part in zip(*blocks, strict=True)
  )
  bags, targets = bags[targets != words.NONE], targets[targets != words.NONE]
  near = words.around(corpus.ids, corpus.texts, np.ones_like(corpus.ids))
  if kind == "cbow":
    wanted = [(tuple(r), t) for r, t in zip(near, corpus.ids, strict=True)]
  else:
    pairs = zip(near, corpus.ids, strict=True)
    wanted = [((m,), n) for row, m in pairs for n in row if n >= 0]
  found = [(tuple(b), t) for b, t in zip(bags, targets, strict=True)]
  assert sorted(found) == sorted(wanted * 2)
  assert dones[-1] == 1.0 and list(dones) == sorted(dones)


def test_glove_is_the_weighted_square_of_its_authors():
  word, context = RNG.normal(size=(2, 5, 4))
  weights = np.array([0.0, 0.5, 3.0, 100.0, 2000.0])
  found = glove.squares(
    *(jnp.float32(x) for x in (word, context, weights)), 100.0, 0.75
  )
  with np.errstate(divide="ignore"):
    error = (
      (word[:, :3] * context[:, :3]).sum(1)
      + word[:, 3]
      + context[:, 3]
      - np.log(weights)
    )
  f = np.where(weights < 100, (weights / 100) ** 0.75, 1.0)
  wanted = [0.0, *(0.5 * f[1:] * error[1:] ** 2)]
  np.testing.assert_allclose(found, wanted, rtol=3e-6)


def test_glove_finds_the_products_that_were_planted():
  """log X = w c + b_w + b_c of rank 3, every pair seen but a fifth."""
  v, rng = 24, np.random.default_rng(3)
  w, c = rng.normal(size=(2, v, 3)) * 0.7
  b, d = rng.normal(size=(2, v)) * 0.5
  log_x = w @ c.T + b[:, None] + d[None] + 1.0
  seen = rng.random((v, v)) < 0.8
  at = np.nonzero(seen)
  counts = cooccurrence.Counts(
    at[0].astype(np.int32),
    at[1].astype(np.int32),
    np.exp(log_x[at]).astype("f"),
  )
  config = glove.Config(d_model=3, largest=1.0)
  how = rows.Config(epochs=1500, batch=15, lr=0.3)
  state = glove.begin(config, v, jax.random.key(1))
  fixed = {"largest": config.largest, "power": config.power}
  for done, block in glove.blocks(counts, how):
    lr = jnp.float32(how.lr * (1 - done))
    state, _ = rows.run(
      glove.objective, state, fixed, block, lr, jax.random.key(0)
    )
  found_w, found_c = (np.asarray(state.tables[k]) for k in ("word", "context"))
  found = found_w[:, :3] @ found_c[:, :3].T
  found += found_w[:, 3:] + found_c[:, 3:].T
  assert np.abs(found - log_x)[seen].max() < 0.01
  # The pairs that it never met follow from the others.
  assert np.abs(found - log_x)[~seen].max() < 0.05


@pytest.mark.parametrize("preset", ["fasttext", "glove"])
def test_the_entrypoint_leaves_a_whole_directory(preset, tmp_path, capsys):
  corpus = planted(60)
  text = np.array(corpus.words)[corpus.ids]
  for i in range(60):
    (tmp_path / f"{i:02}.txt").write_text(" ".join(text[corpus.texts == i]))
  model = {"name": "glove" if preset == "glove" else "word2vec"}
  model |= {"preset": preset, "d_model": 8}
  if preset == "fasttext":
    model["subwords"] = {"n_buckets": 50}
  settings = {
    "model": model,
    "data": {"sources": (f"{tmp_path}/*.txt",)},
    "train": {"epochs": 1, "batch": 64},
  }
  config = door.build(settings, embed.SECTIONS)
  out = epath.Path(tmp_path / "out")
  embed.main(config, out)
  read = words.read(config.data)
  said = capsys.readouterr().out
  n_words, n_kinds = len(read.ids), len(read.words)
  assert f"{n_words:,} words of {n_kinds} kinds in 60 texts" in said
  assert "100%  loss" in said
  assert manifest.verify(out) is None
  found = vectors.read(out / "vectors.txt")
  assert found.words == read.words
  assert found.table.shape == (n_kinds, 8)
  assert (out / "buckets.npy").exists() == (preset == "fasttext")
  assert json.loads((out / "card.json").read_text())["metrics"]["loss"] > 0
  with pytest.raises(ValueError, match="already holds word vectors"):
    embed.main(config, out)
