"""Hidden words and pairs: what is drawn, what it costs, what it teaches."""

import collections
import dataclasses
import itertools

import chex
import jax
import numpy as np
import optax
import pytest
from etils import epath
from jax import numpy as jnp

from configs import door
from data import tokenizer as tokenizers
from data.batch import Batch
from models import bert, checkpoint, families
from models.layers import heads
from sharding import mesh, rules
from train import evaluate, pretrain
from train.core import conflicts, sinks
from train.objectives import mlm

V = 264
MODEL = bert.Config(
  **bert.sized(32, 2, 4, vocab_size=V, max_length=64, dtype="float32"),
  heads=heads.Config(kinds=("words", "texts")),
)
CONFIG = mlm.Config(mask_id=260)
NO_WORDS = np.zeros((2, V), bool)


@pytest.fixture(scope="module")
def text() -> Batch:
  """Texts of two segments, with controls and padding."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 259, (64, 64)).astype(np.int32)
  segments = np.repeat([[1, 2, 0]], 64, 0).repeat([30, 25, 9], 1)
  positions = np.concatenate([np.arange(30), np.arange(25), np.arange(9)])
  positions = np.repeat(positions[None], 64, 0).astype(np.int32)
  ones = np.ones(tokens.shape, np.float32)
  return Batch(tokens, tokens, ones, segments.astype(np.int32), positions)


def _hide(text, seed=0, edges=NO_WORDS, **changes):
  config = dataclasses.replace(CONFIG, **changes)
  hide = jax.jit(lambda text, key: mlm.hide(config, V, edges, text, key))
  read, asked = hide(text, jax.random.key(seed))
  return np.asarray(read), np.asarray(asked) > 0


def test_what_is_hidden_follows_the_law(text):
  """15 % of what may be asked; 80, 10 and 10 % of these; within 4 sigma."""
  found = [_hide(text, seed) for seed in range(4)]
  may = (text.tokens > 2) & (text.segment_ids > 0)
  counts = collections.Counter()
  for read, asked in found:
    assert not (asked & ~may).any()
    assert (read == text.tokens)[~asked].all()
    counts["may"] += may.sum()
    counts["asked"] += asked.sum()
    counts["mask"] += (read == 260)[asked].sum()
    counts["other"] += ((read != 260) & (read != text.tokens))[asked].sum()
    assert not np.isin(read[asked], (0, 1, 2)).any()
  for part, whole, share in (
    ("asked", "may", 0.15),
    ("mask", "asked", 0.8),
    ("other", "asked", 0.1 * (1 - 5 / V)),  # a control, the mask, the token
  ):
    n = counts[whole]
    sigma = (n * share * (1 - share)) ** 0.5
    assert abs(counts[part] - n * share) < 4 * sigma, part


def test_every_step_draws_anew_and_each_the_same_again(text):
  first, again, other = _hide(text), _hide(text), _hide(text, seed=1)
  np.testing.assert_array_equal(first, again)
  assert (first[1] != other[1]).any()


def test_rows_in_another_order_are_hidden_alike(text):
  sizes = mesh.Config(data=1, context=4, fsdp=2)
  layout = rules.make(
    mesh.make(sizes, jax.devices()), "fsdp", "auto", "ring", "zigzag"
  )
  pieces = np.arange(64).reshape(8, 8)
  columns = pieces[[0, 7, 1, 6, 2, 5, 3, 4]].reshape(-1)
  edges = np.arange(2 * V).reshape(2, V) % 3 > 0
  read, asked = _hide(text, edges=edges, whole_words=True)
  moved = jax.tree.map(lambda x: x[:, columns], text)
  with layout.use():
    there = _hide(moved, edges=edges, whole_words=True)
  np.testing.assert_array_equal(there[0], read[:, columns])
  np.testing.assert_array_equal(there[1], asked[:, columns])


SAMPLE = "The unbelievable cat_2 isn't here, the dog is. Étonnant! 中文 x\n" * 8


@pytest.mark.parametrize(
  ("kind", "size"),
  [
    ("bytes", 259),
    ("sentencepiece_bpe", 300),
    ("tokenizers_bpe", 280),
    ("tokenizers_wordpiece", 80),
  ],
)
def test_words_are_hidden_whole(kind, size):
  tokenizer = tokenizers.train(
    tokenizers.Config(kind=kind, vocab_size=size), [SAMPLE]
  )
  ids = np.array([tokenizer.encode(SAMPLE)], np.int32)
  lot = jnp.arange(ids.size, dtype=jnp.float32)[None]
  found = mlm.tokens_of_words(
    lot, jnp.asarray(ids), jnp.ones(ids.shape, jnp.int32), tokenizer.word_edges
  )
  words = [
    tokenizer.decode([i for i, _ in group]).strip()
    for _, group in itertools.groupby(
      zip(ids[0], np.asarray(found)[0], strict=True), key=lambda pair: pair[1]
    )
  ]
  expected = {"unbelievable", "here", "dog", "Étonnant"}
  if kind != "tokenizers_wordpiece":  # which sets signs apart
    expected.add("cat_2")
  assert expected <= {*words}, words[:20]


def test_all_pieces_of_a_word_or_none(text):
  edges = np.arange(2 * V).reshape(2, V) % 3 > 0
  _, asked = _hide(text, edges=edges, whole_words=True, controls=())
  joins = edges[0][text.tokens[:, 1:]] & edges[1][text.tokens[:, :-1]]
  joins &= text.segment_ids[:, 1:] == text.segment_ids[:, :-1]
  joins &= text.segment_ids[:, 1:] > 0
  same = asked[:, 1:] == asked[:, :-1]
  assert same[joins].all() and not same[~joins].all()


def test_the_loss_is_that_of_hidden_words_and_of_pairs(text):
  """Against the plain cross-entropies of all scores."""
  config = dataclasses.replace(CONFIG, pair_weight=20.0, chunk_tokens=16)
  text = text.replace(types=(text.positions > 9).astype(np.int32))
  params = families.init(MODEL, jax.random.key(0))
  params["heads"]["words_bias"] = jnp.linspace(-1, 1, V)
  objective = mlm.make(config, MODEL, NO_WORDS)
  plain = optax.softmax_cross_entropy_with_integer_labels

  @jax.jit
  def expected(params, text):
    read, asked = mlm.hide(config, V, NO_WORDS, text, jax.random.key(0))
    hidden, _ = families.build(MODEL).apply(
      {"params": params}, read, text.positions, text.segment_ids, **text.beside
    )
    nll = plain(families.logits(MODEL, params, hidden), text.tokens)
    scores = families.asked(MODEL, params, "texts", hidden)
    starts = (text.positions == 0) & (text.segment_ids > 0)
    of_pairs = plain(scores, jnp.minimum(text.targets, 1)) * starts
    return (nll * asked).sum(), of_pairs.sum(), asked.sum()

  found = jax.jit(lambda p, b: objective(p, b, None))
  loss, weight, metrics = found(params, text)
  of_words, of_pairs, n_asked = expected(params, text)
  np.testing.assert_allclose(loss, of_words + 20 * of_pairs, rtol=1e-5)
  np.testing.assert_allclose(weight, n_asked)
  np.testing.assert_allclose(metrics["loss"][0], of_words, rtol=1e-5)
  np.testing.assert_allclose(metrics["pair_loss"][0], of_pairs, rtol=1e-5)
  assert metrics["pair_loss"][1] == 2 * 64


@pytest.fixture(scope="module")
def masked(page):
  """A page of a tiny BERT, on pairs; keywords as those of `page`."""

  def build(**changes) -> door.Config:
    sections = {
      "batch": {"packing": "pairs"},
      "objective": dict(name="mlm", mask_id=260, pair_weight=4.0, share=0.3),
      "eval": {"during": (), "final": ("objective",)},
      "checkpoint": {"every_steps": 2},
    }
    for section, values in changes.items():
      sections[section] = {**sections.get(section, {}), **values}
    model = {**dataclasses.asdict(MODEL), **sections.pop("model", {})}
    config = page(**sections).to_dict()
    config["model"] = {"name": "bert", **model}
    return door.build(config, pretrain.SECTIONS)

  return build


def _last(workdir) -> tuple:
  _, params = checkpoint.load(
    checkpoint.find(epath.Path(workdir)),
    rules.make(mesh.make(mesh.Config(), jax.devices()[:1]), "dp"),
  )
  return jax.device_get(params)


CHANGES = {
  "model": {"dropout": 0.1},
  "optim": {"lr": 1e-2},
  "train": {"steps": 24},
  "checkpoint": {"every_steps": 12},
}


@pytest.fixture(scope="module")
def run(masked, tmp_path_factory):
  config = masked(**CHANGES)
  workdir = epath.Path(tmp_path_factory.mktemp("masked"))
  pretrain.main(config, workdir)
  return config, workdir


@pytest.mark.slow
def test_a_run_learns_words_and_pairs(run):
  _, workdir = run
  rows = sinks.rows(workdir)
  losses = [row["loss"] for row in rows if "loss" in row]
  assert np.mean(losses[-5:]) < losses[0] - 1.5
  assert {"pair_loss", "pair_accuracy"} <= rows[0].keys()


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_and_is_evaluated(run, tmp_path):
  """C5: from step 12 of 24, with dropout."""
  config, whole = run
  parts = epath.Path(tmp_path)
  (parts / "checkpoints").mkdir()
  _copy(whole / "checkpoints" / "12", parts / "checkpoints" / "12")
  pretrain.main(config, parts)
  chex.assert_trees_all_equal(_last(parts), _last(whole))

  evaluate.main(config, whole)
  found = (whole / "evaluation.json").read_text()
  assert "heldout_loss" in found and "heldout_accuracy" in found


def _copy(source: epath.Path, target: epath.Path) -> None:
  target.mkdir()
  for path in source.iterdir():
    if path.is_dir():
      _copy(path, target / path.name)
    else:
      (target / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(objective=dict(mask_id=264)), "mask_id=264 is no id"),
    (dict(objective=dict(mask_id=7)), "a piece of text"),
    (dict(objective=dict(pair_weight=0.0)), "pair_weight=0.0 with batch.pack"),
    (dict(batch=dict(packing="segments")), "packing='segments'"),
    (dict(model=dict(n_types=1)), "n_types=1"),
    (dict(model=dict(heads={"kinds": ("words",)})), "asks for texts"),
    (dict(eval=dict(final=("perplexity",))), "leave perplexity out"),
    (dict(objective=dict(random_share=0.95)), "random_share=0.95"),
    (dict(batch=dict(length=8)), "no room for a pair"),
  ],
)
def test_what_does_not_fit_is_refused(masked, changes, words):
  with pytest.raises(ValueError, match=words):
    conflicts.check(masked(**changes))


def test_each_objective_has_its_models(page):
  config = page(objective=dict(name="mlm", mask_id=260))
  with pytest.raises(ValueError, match="give objective.name=lm"):
    conflicts.check(config)
  model = {"name": "bert", **dataclasses.asdict(MODEL)}
  config = door.build({**page().to_dict(), "model": model}, pretrain.SECTIONS)
  with pytest.raises(ValueError, match="give objective.name=mlm"):
    conflicts.check(config)


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [False, True])
def test_the_page_learns_from_real_text(tmp_path, pairs):
  page = door.read(f"configs/bert_tiny.py:steps=150,pairs={pairs}")
  workdir = epath.Path(tmp_path)
  pretrain.main(door.build(page, pretrain.SECTIONS), workdir)
  rows = sinks.rows(workdir)
  losses = [row["loss"] for row in rows if "loss" in row]
  assert losses[-1] < losses[0] - 1.5
