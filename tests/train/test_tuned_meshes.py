"""Finetuning and adapters on eight devices beside one device, fp32: S1.

Two steps of the run's own step: loss, gradient norm, parameters, momentum.
"""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import meshes
from configs import door
from data.batch import Source
from models import bert, families, t5
from models.layers import heads
from sharding import mesh, rules
from train import finetune, lora
from train.core import loop, parts, run, state
from train.objectives import choice

LORA = {"name": "lora", "paths": ("*/attention/*", "*/mlp/*"), "rank": 4}
SIZES = dict(
  vocab_size=264, d_model=32, n_layers=2, n_heads=4, d_ff=64, max_length=64,
  dtype="float32",
)  # fmt: skip
T5 = {
  "name": "t5",
  **dataclasses.asdict(t5.Config(**SIZES, n_encoder_layers=2, d_head=8)),
}
BERT = {
  "name": "bert",
  **dataclasses.asdict(
    bert.Config(**SIZES, heads=heads.Config(kinds=("texts",), n_labels=3))
  ),
}
LABELS = {"objective": {"name": "labels"}, "data": {"formats": ("labels",)}}
SCORED = {"heads": {"kinds": ("texts",), "n_labels": 3}}
CASES = {  # name -> sections that change
  "frozen": dict(base={"trained": ("norm/*", "stack/*/mlp/*")}),
  "lora": dict(adapter=LORA),
  "qlora": dict(adapter=LORA, base={"weights": "nf4"}),
  "dora on int8": dict(
    adapter={**LORA, "decomposed": True}, base={"weights": "int8"}
  ),
  "labels": dict(**LABELS, model=SCORED),
  "labels, qlora": dict(
    **LABELS, model=SCORED, adapter=LORA, base={"weights": "nf4"}
  ),
  "labels of bert, lora": dict(  # its other leaves of attention are vectors
    **LABELS, model=BERT, adapter={**LORA, "paths": ("*/attention/[qkvo]",)}
  ),
  "two texts": dict(model=T5),
  "two texts, lora": dict(model=T5, adapter=LORA),
}
QUICK = ("frozen", "labels, qlora")
MESHES = {
  "fsdp_tensor": dict(data=2, fsdp=2, tensor=2, rules="fsdp_tensor"),
  "fsdp": dict(data=2, fsdp=4, rules="fsdp"),
  "slices": dict(replica=2, data=1, fsdp=4, rules="fsdp"),
}


def config_of(page, **changes) -> door.Config:
  settings = page(batch={"size": 16, "length": 16}).to_dict()
  settings["base"] = {"path": "base"}
  settings["optim"] = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
  settings["eval"] = {"during": (), "final": ()}
  for section, values in changes.items():
    old = {} if "name" in values else settings.get(section, {})
    settings[section] = {**old, **values}
  entry = lora if "adapter" in changes else finetune
  return door.build(settings, entry.SECTIONS)


def batch_of(model, whole):
  """Of a model of labels, a class at the first token of each text."""
  if families.reads(model, "source"):
    source = Source(whole.targets, whole.positions, whole.segment_ids)
    return whole.replace(source=source)
  if families.kinds(model):
    asked = np.float32(whole.positions == 0)
    return whole.replace(targets=whole.targets % 3, weights=asked)
  return whole


def steps(config: door.Config, batch, sizes: dict | None) -> meshes.Outcome:
  """Two steps from the same base."""
  where = mesh.Config(**(sizes or {"data": 1}))
  devices = jax.devices()[: 8 if sizes else 1]
  layout = rules.make(mesh.make(where, devices), *where.settings)
  split, model = parts.make(config), config.model
  edges = np.zeros((2, model.vocab_size), bool)
  objective = choice.make(config.objective, model, edges)
  optimizer, update = run.make_step(config, model, layout, objective)
  draw = jax.jit(lambda key: split.split(families.init(model, key), key))
  trained, frozen = jax.device_get(draw(jax.random.key(0)))
  places = state.shardings(split, optimizer, layout)
  trained, frozen = jax.device_put(
    (trained, frozen), (places.params, places.frozen)
  )
  last = state.begin(split, optimizer, layout, trained, frozen)
  before = jax.device_get(last.frozen)
  batch = jax.tree.map(lambda x: jax.device_put(x, layout.batch), batch)
  compiled, _ = loop.compile_step(update, last, batch, layout)
  for _ in range(2):
    last, metrics, _ = compiled(last, batch)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(last.frozen), before
  )
  return meshes.Outcome(jax.device_get(last), loop.divide([metrics]), compiled)


@pytest.mark.parametrize(
  ("name", "table"),
  [
    (name, "fsdp_tensor")
    if name in QUICK
    else pytest.param(name, "fsdp_tensor", marks=pytest.mark.slow)
    for name in CASES
  ]
  + [pytest.param("qlora", "fsdp", marks=pytest.mark.slow)]
  + [
    pytest.param(name, "slices", marks=pytest.mark.slow)
    for name in ("frozen", "qlora", "labels", "two texts")
  ],
)
def test_eight_devices_tune_as_one(page, ragged_batch, name, table):
  """Slices each go through the parts of their rows, and then meet."""
  n_micro = 2 if table == "slices" else 1
  config = config_of(page, **CASES[name], train={"n_micro": n_micro})
  batch = batch_of(config.model, ragged_batch)
  there = steps(config, batch, MESHES[table])
  here = steps(config, batch, None)
  for key in ("loss", "grad_norm"):
    np.testing.assert_allclose(
      there.metrics[key], here.metrics[key], rtol=1e-5, err_msg=key
    )
  assert here.metrics["grad_norm"] > 1e-3

  def close(path, x, y):
    most = max(np.abs(y).max(), 1e-3)
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * most, err_msg=name)

  jax.tree.map_with_path(close, there.state.params, here.state.params)


@pytest.mark.slow
def test_b_alone_steps_faster_with_lora_plus(page, ragged_batch):
  """One step of SGD: with b_speed=8, b moves 8 times as far, and a as far."""
  moved = []
  for speed in (1.0, 8.0):
    config = config_of(page, adapter={**LORA, "b_speed": speed})
    changed = {"optim": dataclasses.replace(config.optim, momentum=0.0)}
    config = dataclasses.replace(
      config, sections={**config.sections, **changed}
    )
    split, layout = parts.make(config), meshes.place(None)
    edges = np.zeros((2, config.model.vocab_size), bool)
    objective = choice.make(config.objective, config.model, edges)
    optimizer, _ = run.make_step(config, config.model, layout, objective)
    params = families.init(config.model, jax.random.key(0))
    trained, frozen = split.split(params, jax.random.key(1))
    # Where b is not 0, a has a gradient too.
    trained = jax.tree.map(lambda x: x + 0.01, trained)
    batch = jax.tree.map(jnp.asarray, ragged_batch)

    def loss(own, split=split, frozen=frozen, batch=batch, objective=objective):
      return objective(split.join(own, frozen, None), batch, None)[0]

    gradients = jax.jit(jax.grad(loss))(trained)
    updates, _ = optimizer.update(gradients, optimizer.init(trained), trained)
    moved.append(jax.device_get(updates))
  for path, x in jax.tree.leaves_with_path(moved[1]):
    before = moved[0]
    for key in path:
      before = before[key.key]
    assert np.abs(before).max() > 0
    wanted = before * (8 if path[-1].key == "b" else 1)
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-9)
