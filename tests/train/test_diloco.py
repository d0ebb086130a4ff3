"""Replicas that train alone, and meet once a round."""

import dataclasses
import functools
import shutil

import chex
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax import numpy as jnp

from benchmarks.parity import cells
from data.batch import Batch
from models import checkpoint, families
from sharding import hlo, mesh, rules
from train import pretrain
from train.core import diloco, loop, optim, sinks, staged, state, step
from train.objectives import lm

PLAIN = dict(lr=1.0, momentum=0.0)  # an outer step to the mean


@pytest.fixture(scope="module")
def even_batch(tiny) -> Batch:
  """16 rows that weigh the same, as all replicas do."""
  rng, shape = np.random.default_rng(0), (16, 16)
  ids = rng.integers(0, tiny.vocab_size, (2, *shape)).astype(np.int32)
  ones = np.ones(shape, np.int32)
  places = np.broadcast_to(np.arange(16, dtype=np.int32), shape)
  return Batch(*ids, ones.astype(np.float32), ones, places)


def built(model, layout, config, rounds, n_micro=1, how=None):
  """The optimizer and the step, as `run.make_step` puts them together."""
  within = layout.within("replica") if rounds else layout
  objective = lm.make(lm.Config(chunk_tokens=8), model)
  axes = families.axes(model)
  optimizer = optim.make(config, lambda _: 1.0, axes)
  places = layout.shardings(axes, families.abstract(model), "grads")
  make = functools.partial(
    step.make,
    staged.make(objective, model, within, n_micro, how),
    optimizer,
    n_micro=n_micro if layout.n_stages == 1 else 1,
    axes=axes,
    grad_shardings=jax.tree.map(lambda place: place.spec, places),
  )
  if rounds is None:
    return optimizer, make(seed=3)
  n = layout.mesh.shape["replica"]
  return state.Copies(optimizer, n), diloco.make(rounds, make, n, 3)


def compiled(model, batch, layout, config, rounds=None, **parts):
  """The first state, the batch, and the step."""
  optimizer, update = built(model, layout, config, rounds, **parts)
  params = jax.device_get(families.init(model, jax.random.key(3)))
  first = jax.device_get(state.start(params, optimizer))
  first = jax.device_put(first, state.shardings(model, optimizer, layout))
  batch = jax.device_put(batch, layout.batch)
  run, _ = loop.compile_step(update, first, batch, layout)
  return first, batch, run


def layout_of(table, n_devices=8, **sizes):
  made = mesh.make(mesh.Config(**sizes), jax.devices()[:n_devices])
  return rules.make(made, table)


@pytest.mark.parametrize(
  "table, sizes",
  [
    ("fsdp", dict(replica=2, data=1, fsdp=4)),
    pytest.param(
      "fsdp_tensor",
      dict(replica=2, data=1, fsdp=2, tensor=2),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      "fsdp",
      dict(replica=2, data=1, fsdp=2, context=2),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_rounds_of_one_step_are_data_parallelism(
  tiny, even_batch, table, sizes
):
  sgd, layout = optim.SGD(lr=0.3, clip=None), layout_of(table, **sizes)
  last, batch, plain = compiled(tiny, even_batch, layout, sgd)
  rounds = diloco.Config(round_steps=1, **PLAIN)
  own, batch, run = compiled(tiny, even_batch, layout, sgd, rounds)
  start = jax.device_get(own.params)
  for _ in range(2):
    last, expected, _ = plain(last, batch)
    own, metrics, verdict = run(own, batch)
  ours, theirs = jax.device_get((own.params, last.params))
  chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-6)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ours, start)
  assert min(jax.tree.leaves(moved)) > 1e-5
  for name in ("loss", "accuracy"):
    found, wanted = loop.divide([metrics]), loop.divide([expected])
    np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)
  if table != "fsdp" or "context" in sizes:
    return
  # A step that is bad in the second replica is not applied there.
  weights = np.array(even_batch.weights)
  weights[-1, 0] = np.nan
  spoilt = jax.device_put(
    Batch(**{**vars(even_batch), "weights": weights}), layout.batch
  )
  assert bool(verdict.is_good)
  before = jax.device_get(own.params)
  own, metrics, verdict = run(own, spoilt)
  assert not bool(verdict.is_good) and not bool(verdict.finite_weights)
  assert loop.divide([metrics])["bad"] == 0.5
  chex.assert_tree_all_finite(own.params)
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), jax.device_get(own.params), before
  )
  assert min(jax.tree.leaves(moved)) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
  "family, table, sizes, how",
  [
    ("llama", "fsdp", dict(fsdp=2, stage=2), "1f1b"),
    ("llama", "fsdp_tensor", dict(tensor=2, stage=2), "interleaved"),
    ("llama", "fsdp", dict(context=2, stage=2), "gpipe"),
    ("mixtral", "expert", dict(expert=2, stage=2), "1f1b"),
    ("mixtral", "expert", dict(expert=2, context=2), None),
    ("mixtral, room", "expert", dict(fsdp=2, expert=2), None),
    ("mixtral", "expert_tensor", dict(expert=2, tensor=2), None),
  ],
)
def test_a_replica_goes_as_it_would_without_the_others(
  even_batch, family, table, sizes, how
):
  """On any mesh, as one device does on its rows; and then to the mean."""
  how = cells.SCHEDULES.get(how)
  n_layers = 2 * how.n_repeats if how else 2
  model = dataclasses.replace(cells.FAMILIES[family], n_layers=n_layers)
  ids = {k: getattr(even_batch, k) % cells.VOCAB for k in ("tokens", "targets")}
  batch = even_batch.replace(**ids)
  sgd, parts = optim.SGD(lr=0.3, clip=None), dict(n_micro=2)
  alone = []
  for rows in (slice(8), slice(8, None)):
    own = jax.tree.map(lambda x, rows=rows: x[rows], batch)
    one = layout_of("dp", 1)
    last, own, plain = compiled(model, own, one, sgd, **parts)
    states = []
    for _ in range(3):
      last, *_ = plain(last, own)
      states.append(jax.device_get(last.params))
    alone.append(states)
  # Two steps apart, and with the third they meet.
  apart, met = (
    jax.tree.map(lambda *x: np.stack(x), *x)
    for x in list(zip(*alone, strict=True))[1:]
  )
  layout = layout_of(table, replica=2, data=1, **sizes)
  rounds = diloco.Config(round_steps=3, **PLAIN)
  own, batch, run = compiled(
    model, batch, layout, sgd, rounds, how=how, **parts
  )
  near = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
  for _ in range(2):
    own, *_ = run(own, batch)
  near(jax.device_get(own.opt_state.copies.params), apart)
  own, *_ = run(own, batch)
  near(jax.device_get(own.params), jax.tree.map(lambda x: x.mean(0), met))


def test_between_replicas_nothing_travels_in_a_step(tiny, even_batch):
  """And once a round their parameters: read from the compiled programs."""
  layout = layout_of("fsdp", replica=2, data=1, fsdp=4)
  rounds = diloco.Config(round_steps=3)
  adam = optim.AdamW(lr=1e-3)
  optimizer, update = built(tiny, layout, adam, rounds)
  first = state.abstract(tiny, optimizer, layout)
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.batch),
    even_batch,
  )
  _, inner = built(tiny, layout, adam, None)
  alone = functools.partial(diloco.alone, lambda seed: inner, np.arange(2))
  copies = first.opt_state.copies
  places = jax.tree.map(lambda x: x.sharding, copies)
  with layout.use():
    jitted = jax.jit(lambda c, b: alone(c, b)[0], out_shardings=places)
    text = jitted.lower(copies, batch).compile().as_text()
  found = hlo.read(text, layout.mesh).collectives
  assert not [c for c in found if "replica" in c.axes]
  assert [c for c in found if c.axes == ("fsdp",)]  # and it can see some

  run, _ = loop.compile_step(update, first, batch, layout)
  found = hlo.read(run.as_text(), layout.mesh).collectives
  far = sum(c.wire_bytes for c in found if "replica" in c.axes)
  shards = state.shardings(tiny, optimizer, layout).params
  sizes = jax.tree.map(
    lambda x, s: 4 * np.prod(s.shard_shape(x.shape)),
    families.abstract(tiny), shards,
  )  # fmt: skip
  n_bytes = sum(jax.tree.leaves(sizes))
  # Ring of two: each receives all of its shards once; and figures.
  assert n_bytes <= far <= n_bytes + 1000


@pytest.mark.slow
def test_one_replica_that_goes_to_the_mean_is_the_plain_run(tiny, even_batch):
  """To the bit, with dropout."""
  model = tiny.__class__(**{**vars(tiny), "dropout": 0.1, "n_layers": 1})
  layout, adam = layout_of("dp", 1), optim.AdamW(lr=1e-3)
  last, batch, plain = compiled(model, even_batch, layout, adam)
  rounds = diloco.Config(round_steps=2, **PLAIN)
  own, batch, run = compiled(model, even_batch, layout, adam, rounds)
  for _ in range(4):
    last, *_ = plain(last, batch)
    own, *_ = run(own, batch)
  chex.assert_trees_all_equal(
    jax.device_get(own.params), jax.device_get(last.params)
  )
  one = jax.tree.map(lambda x: x[0], own.opt_state.copies.opt_state)
  chex.assert_trees_all_equal(
    jax.device_get(one), jax.device_get(last.opt_state)
  )


def test_the_outer_step_is_nesterovs():
  rng = np.random.default_rng(0)
  config = diloco.Config(lr=0.7, momentum=0.9)
  params = {"a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
  oracle = optax.sgd(0.7, momentum=0.9, nesterov=True)
  theirs, told = params, oracle.init(params)
  momentum = jax.tree.map(jnp.zeros_like, params)
  for _ in range(3):
    apart = rng.normal(size=(2, 3, 4)).astype(np.float32)
    copies = {"a": params["a"][None] + apart}
    gone = jax.tree.map(lambda p, c: p - c.mean(0), theirs, copies)
    updates, told = oracle.update(gone, told, theirs)
    theirs = optax.apply_updates(theirs, updates)
    params, copies, momentum = diloco.outer(config, params, copies, momentum)
    chex.assert_trees_all_close(params, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(copies["a"][1], params["a"])


def _arrays(path: epath.Path) -> dict:
  """params/ and state/ of a checkpoint, on the host."""
  reader = ocp.PyTreeCheckpointHandler()

  def read(folder):
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    how = jax.tree.map(lambda _: as_numpy, reader.metadata(folder).tree)
    return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=how))

  return {name: read(path / name) for name in ("params", "state")}


@pytest.mark.slow
def test_a_run_of_rounds_learns_and_resumes_within_one(page, tmp_path):
  """Two replicas of four devices; 6 steps are a round and a half."""
  config = page(
    mesh={"replica": 2, "data": 1, "fsdp": 4, "rules": "fsdp"},
    train={"steps": 12, "diloco": {"round_steps": 4}},
    checkpoint={"every_steps": 6},
  )
  workdir = epath.Path(tmp_path) / "whole"
  pretrain.main(config, workdir)
  rows = [r for r in sinks.rows(workdir) if "loss" in r]
  assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
  within, end = (_arrays(workdir / f"checkpoints/{i}") for i in (6, 12))

  def copies(arrays):
    return arrays["state"]["opt_state"]["copies"]["params"]

  # Other data, other parameters; behind a round they are the published ones.
  for one in jax.tree.leaves(copies(within)):
    assert np.abs(one[0] - one[1]).max() > 1e-4
  for r in range(2):
    chex.assert_trees_all_equal(
      jax.tree.map(lambda x, r=r: x[r], copies(end)), end["params"]
    )
  _, loaded = checkpoint.load(workdir / "checkpoints/12", layout_of("dp", 1))
  chex.assert_trees_all_equal(jax.device_get(loaded), end["params"])

  again = epath.Path(tmp_path) / "again"
  shutil.copytree(workdir / "checkpoints/6", again / "checkpoints/6")
  pretrain.main(config, again)
  chex.assert_trees_all_equal(_arrays(again / "checkpoints/12"), end)
