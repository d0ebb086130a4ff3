"""Evaluators against what is known beforehand."""

import bz2
import gzip
import json
import lzma
import math
import typing

import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from configs import fields
from data import pipeline, prepare
from data import tokenizer as tokenizers
from models import families, sampling
from sharding import mesh, rules
from train.core import loop, setup, sinks, track
from train.evaluators import compression, perplexity, samples, suite, syntax
from train.objectives import lm

ALONE = rules.make(mesh.make(mesh.Config(), jax.devices()[:1]), "dp")
WIDE = rules.make(mesh.make(mesh.Config(data=8)), "dp")
SPLIT = rules.make(
  mesh.make(mesh.Config(data=2, context=4)), "fsdp", "auto", "ring", "zigzag"
)


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
  return prepare.prepare(
    prepare.Config(sources=(f"{corpus}/*.txt",), heldout_fraction=0.2),
    tokenizers.Config(kind="bytes", vocab_size=259),
    epath.Path(tmp_path_factory.mktemp("store")) / "store",
  )


def _setup(store, model, layout, size, length=32) -> setup.Setup:
  return setup.Setup(
    layout,
    model,
    store,
    pipeline.Config(size=size, length=length),
    "reference",
  )


def _evaluate(s: setup.Setup, params) -> dict[str, float]:
  token_bytes = s.store.tokenizer.token_bytes
  evaluate = perplexity.make(s.model, s.heldout, token_bytes, s.layout)
  return evaluate(params, 0)


def test_a_uniform_model_pays_log2_v_bits_for_every_byte(store, tiny):
  params = families.init(tiny, jax.random.key(0))
  params["head"]["table"] *= 0
  found = _evaluate(_setup(store, tiny, ALONE, 4), params)
  n_bytes = sum(corpus.n_bytes for corpus in store.heldout)
  n_documents = sum(corpus.n_documents for corpus in store.heldout)
  # Each document also pays for its end.
  bits = math.log2(tiny.vocab_size) * (n_bytes + n_documents) / n_bytes
  np.testing.assert_allclose(found["bits_per_byte"], bits, rtol=1e-5)
  np.testing.assert_allclose(found["perplexity"], tiny.vocab_size, rtol=1e-4)


def test_the_figure_is_that_of_the_documents_one_by_one(store, tiny):
  """Also where the last batch is not full, on one device and on eight: S10."""
  params = families.init(tiny, jax.random.key(1))
  # Rows longer than every document: none loses its context to a border.
  length = 640
  model = tiny.__class__(**{**vars(tiny), "max_length": length})
  nll = n_tokens = 0.0
  score = jax.jit(
    lambda ids, where, real: families.build(model).apply(
      {"params": params}, ids, where, real
    )[0]
  )
  for corpus in store.heldout:
    for i in range(len(corpus)):
      ids = [1, *corpus[i], 2]
      if len(ids) > length:
        continue
      padded = np.zeros((1, length), np.int32)
      padded[0, : len(ids) - 1] = ids[:-1]
      at = np.arange(length, dtype=np.int32)[None]
      real = (at < len(ids) - 1).astype(np.int32)
      logits = families.logits(model, params, score(padded, at, real))[0]
      log_p = jax.nn.log_softmax(logits[: len(ids) - 1])
      nll -= float(log_p[np.arange(len(ids) - 1), np.array(ids[1:])].sum())
      n_tokens += len(ids) - 1
  alone = _evaluate(_setup(store, model, ALONE, 3, length), params)
  wide = _evaluate(
    _setup(store, model, WIDE, 8, length),
    jax.device_put(params, WIDE.replicated),
  )
  # Only documents that a row's border cuts differ from their own context.
  np.testing.assert_allclose(alone["heldout_loss"], nll / n_tokens, rtol=2e-3)
  np.testing.assert_allclose(
    wide["heldout_loss"], alone["heldout_loss"], rtol=1e-6
  )


def test_rows_that_are_split_give_the_same_figure_and_go_on_the_same(
  store, tiny
):
  params = families.init(tiny, jax.random.key(1))
  alone, split = (_setup(store, tiny, x, 4) for x in (ALONE, SPLIT))
  whole, parts = next(alone.heldout()), next(split.heldout())
  pieces = [0, 7, 1, 6, 2, 5, 3, 4]
  expected = np.asarray(whole.tokens).reshape(4, 8, 4)[:, pieces]
  np.testing.assert_array_equal(parts.tokens, expected.reshape(4, 32))
  assert {x.data.shape for x in parts.tokens.addressable_shards} == {(2, 8)}
  shapes, axes = families.abstract(tiny), families.axes(tiny)
  placed = jax.device_put(params, SPLIT.shardings(axes, shapes))
  figures = _evaluate(split, placed), _evaluate(alone, params)
  assert figures[0] == pytest.approx(figures[1], rel=1e-6)
  settings = sampling.Config(max_tokens=4, temperature=0.0)
  texts = [
    samples.write(tiny, p, store.tokenizer, ["the"], settings)
    for p in (placed, params)
  ]
  assert texts[0] == texts[1]


def test_compressors_are_the_ones_on_this_machine():
  texts = ["ab" * 500, "cd\n" * 300]
  raw = "".join(texts).encode()
  found = compression.bits_per_byte(texts)
  assert found == {
    "gzip_bits_per_byte": 8 * len(gzip.compress(raw, 9)) / len(raw),
    "bz2_bits_per_byte": 8 * len(bz2.compress(raw)) / len(raw),
    "xz_bits_per_byte": 8
    * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    / len(raw),
  }


@pytest.mark.parametrize(
  "text",
  [
    "def f(x):\n  return x\n",
    "import os\n\nprint('a')\n",
    "x = [1,\n  2,\n",  # a bracket that the cut leaves open
    '"""A docstring\nthat goes on\n',
    "a b c 1 2",  # tokens, if no grammar
    "\n".join(["x = 1"] * 10 + ["   'unterminated"]),  # after the tenth line
  ],
)
def test_python(text):
  assert syntax.is_python(text)


@pytest.mark.parametrize(
  "text",
  ["", "\n \n", "if x:\n    a\n  b\n", "x = 'open\n", "a ? b", "$x", "0777x'"],
)
def test_no_python(text):
  assert not syntax.is_python(text)


def test_share():
  assert syntax.share(["x = 1", "?", "y", "$"]) == 0.5


def test_samples_begin_with_their_prompts(store, tiny):
  params = families.init(tiny, jax.random.key(0))
  settings = sampling.Config(max_tokens=5, seed=1)
  prompts = ["the cat", ""]
  texts = samples.write(tiny, params, store.tokenizer, prompts, settings)
  again = samples.write(tiny, params, store.tokenizer, prompts, settings)
  assert texts == again
  assert texts[0].startswith("the cat") and len(texts[0]) > len("the cat")


def test_the_suite_by_name(store, tiny):
  s = _setup(store, tiny, ALONE, 4)
  params = families.init(tiny, jax.random.key(0))
  config = suite.Config(n_python=2, prompts=("the",))
  settings = sampling.Config(max_tokens=4)
  made = suite.make(
    typing.get_args(suite.Name),
    config,
    settings,
    s,
    track.Silent(),
    lm.make(lm.Config(), tiny),
  )
  found = {}
  for evaluator in made.values():
    found |= evaluator(params, 3)
  assert found.keys() == set().union(*suite.REPORTED.values())


def test_an_unknown_evaluator_is_named():
  with pytest.raises(ValueError, match="perplexity | samples"):
    fields.make(suite.Config, {"during": ("perplexty",)}, "config.eval")


def test_no_held_out_text_is_an_error(tiny):
  evaluate = perplexity.make(tiny, lambda: iter(()), np.ones(3), ALONE)
  with pytest.raises(ValueError, match="heldout_fraction"):
    evaluate({}, 0)


def test_rows_after_the_step_are_dropped(tmp_path):
  """A run that goes on after step 2 writes step 3 once."""
  folder = epath.Path(tmp_path)
  for first in (0, 2):
    with track.open_tracker(folder, first) as tracker:
      for step in range(first + 1, 4):
        tracker.log(step, "train", {"loss": step / 2})
      tracker.text(3, "sample", "text")
  rows = sinks.rows(folder)
  assert [row["step"] for row in rows] == [1, 2, 3]
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "lo')  # torn
  assert sinks.rows(folder) == rows
  assert any("tfevents" in p.name for p in folder.iterdir())
  assert "text" in (folder / "samples.txt").read_text()
  assert json.loads((folder / "metrics.jsonl").read_text().split("\n")[0])


def test_a_mean_of_sums_is_weighted():
  pair = lambda a, b: {"loss": (jnp.float32(a), jnp.float32(b))}  # noqa: E731
  from_steps = [pair(2.0, 1.0), pair(9.0, 3.0)]
  assert loop.divide(from_steps) == {"loss": 11 / 4}
