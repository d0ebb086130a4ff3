"""Texts that are hidden in part: each kind trains, resumes and is measured."""

import dataclasses
import json
import shutil

import chex
import jax
import optax
import pytest
from etils import epath
from jax import numpy as jnp

from configs import door
from data import corrupt, pipeline, prepare
from models import bart, checkpoint, decode, families, flops, sampling, t5
from train import pretrain
from train.objectives import lm

VOCAB = 368  # 259 ids of bytes and 107 above them, rounded up
PAIR = dict(
  vocab_size=VOCAB,
  d_model=32,
  n_encoder_layers=2,
  n_layers=2,
  n_heads=4,
  d_ff=64,
  max_length=64,
  start_id=1,
  dtype="float32",
)
T5 = {"name": "t5", **dataclasses.asdict(t5.Config(**PAIR, d_head=8))}
BART = {"name": "bart", **dataclasses.asdict(bart.Config(**PAIR))}
RUNS = {  # name -> model and batch
  "spans": (T5, dict(noise={"kind": "spans"}, source_length=48, length=24)),
  "infill": (BART, dict(noise={"kind": "infill"}, source_length=32)),
  "prefixes": (T5, dict(noise={"kind": "prefix"}, source_length=32)),
  "prefix": ({}, dict(noise={"kind": "prefix"})),
  "middle": ({}, dict(noise={"kind": "middle"})),
  "ul2": ({}, dict(noise={"kind": "ul2"}, length=48)),
  "ul2_pairs": (T5, dict(noise={"kind": "ul2"}, source_length=48, length=48)),
}


def config_of(page, name: str, n_steps: int) -> door.Config:
  model, batch = RUNS[name]
  changed = page(
    model={"vocab_size": VOCAB},
    batch=batch,
    train={"steps": n_steps, "log_every_steps": 5},
    checkpoint={"every_steps": 4},
    eval={"during": ("perplexity", "samples"), "prompts": ("the cat",)},
    schedule={"warmup_steps": 2},
  ).to_dict()
  return door.build({**changed, "model": model or changed["model"]},
                    pretrain.SECTIONS)  # fmt: skip


def losses(workdir: epath.Path) -> list[float]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


_QUICK = {"spans"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spans", "ul2"])
def test_the_loss_falls(page, tmp_path, name):
  workdir = epath.Path(tmp_path)
  pretrain.main(config_of(page, name, 20), workdir)
  first, *_, last = losses(workdir)
  assert last < 0.75 * first, (first, last)


@pytest.mark.parametrize(
  "name",
  [
    name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in RUNS
  ],
)
def test_a_step_learns_what_is_hidden(page, corpus, tmp_path, name):
  """On one device, without a run around it."""
  config = config_of(page, name, 4)
  store = prepare.prepare(
    config.data, config.tokenizer, epath.Path(tmp_path) / "store"
  )
  noise = config.batch.noise_of(store.tokenizer)
  batches = pipeline.train_batches(
    config.batch, store.train, (), range(config.batch.size), 0, noise
  )
  objective, optimizer = lm.make(lm.Config(), config.model), optax.adam(1e-2)

  @jax.jit
  def step(params, state, batch):
    def loss(params):
      total, weight, _ = objective(params, batch, None)
      return total / weight

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, value

  params = families.init(config.model, jax.random.key(0))
  state, found = optimizer.init(params), []
  for _ in range(15):
    batch = jax.tree.map(jnp.asarray, next(batches))
    params, state, value = step(params, state, batch)
    found.append(float(value))
  assert found[-1] < 0.75 * found[0], found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spans", "ul2"])
def test_a_run_goes_on_to_the_same_bits(page, tmp_path, name):
  """C5, with texts that are hidden in part."""
  whole, halves = (epath.Path(tmp_path) / x for x in ("whole", "halves"))
  config = config_of(page, name, 6)
  pretrain.main(config, whole)
  shutil.copytree(whole / "checkpoints" / "4", halves / "checkpoints" / "4")
  pretrain.main(config, halves)
  ours, theirs = (
    jax.device_get(checkpoint.load(w)[1]) for w in (halves, whole)
  )
  chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.slow
def test_hidden_spans_are_written(page, tmp_path):
  """A text in, the spans that its sentinels stand for out: of a run's model."""
  workdir = epath.Path(tmp_path)
  pretrain.main(config_of(page, "spans", 60), workdir)
  model, params = checkpoint.load(workdir)
  ids = corrupt.Ids(259)
  source = [*(i + 3 for i in b"the cat s"), ids.sentinels[0], 35, 2]
  (written,) = decode.generate(
    model,
    params,
    [[model.start_id]],
    sampling.Config(temperature=0.0, max_tokens=4),
    sources=[source],
  )
  assert written[0] == ids.sentinels[0]


def test_both_texts_are_counted():
  """FLOPs per written token, by hand: 24 of them, 48 that are read."""
  config = t5.Config(**PAIR, d_head=8)
  length, source_length = 24, 48
  square, wide = 32 * 32, 2 * 32 * 64  # of d_model, heads and d_ff
  written = 2 * (6 * square + wide + 3 * 32) + 32 + 32 * VOCAB  # and norms
  read = 2 * (4 * square + wide + 2 * 32) + 32 + 2 * (2 * square)
  seen = 2 * (length / 2 + source_length) + 2 * 2 * source_length
  wanted = 2 * (written + 2 * read) + 2 * 4 * 16 * seen
  found = flops.forward_per_token(config, length, source_length)
  assert found == wanted
  assert flops.train_per_token(config, length, source_length) == 3 * wanted


@pytest.mark.parametrize(
  ("name", "changes", "said"),
  [
    ("spans", dict(batch={"source_length": 0}), "source_length=0 with model."),
    (
      "prefix",
      dict(batch={"source_length": 32}),
      "source_length=32 with model",
    ),
    ("spans", dict(batch={"source_length": 65}), "more than model.max_length"),
    ("ul2", dict(model={"vocab_size": 264}), "ids that batch.noise has above"),
    (
      "spans",
      dict(data={"formats": ("pairs",), "chat": {"apart": True}}),
      "records of two texts go",
    ),
    ("spans", dict(mesh={"data": 4, "context": 2}), "give mesh.context=1"),
    ("spans", dict(mesh={"data": 4, "stage": 2}), "t5 has two"),
    ("spans", dict(batch={"source_length": 12}), "no room for 16 tokens"),
  ],
)
def test_what_does_not_fit_is_told_before_anything_compiles(
  page, tmp_path, monkeypatch, name, changes, said
):
  monkeypatch.setattr(pretrain.loop, "compile_step", None)
  settings = config_of(page, name, 4).to_dict()
  for section, values in changes.items():
    settings[section] = {**settings[section], **values}
  config = door.build(settings, pretrain.SECTIONS)
  with pytest.raises(ValueError, match=said):
    pretrain.main(config, epath.Path(tmp_path))
