"""Moments in the host's memory: the same run, to the bit."""

import dataclasses
import shutil

import chex
import jax
import numpy as np
import pytest
from etils import epath

from models import checkpoint, families
from sharding import mesh, rules
from train import pretrain
from train.core import optim, schedule, state, streamed
from train.core import step as steps


def _optimizer(model, kind="float32", **settings):
  config = optim.AdamW(lr=1e-2, moments=kind, **settings)
  factor = schedule.make(schedule.Constant(), 10)
  return optim.make(config, factor, families.axes(model))


def _hosted(tree):
  def is_hosted(node):
    return isinstance(node, streamed.Hosted)

  found = jax.tree.leaves(tree, is_leaf=is_hosted)
  return next(filter(is_hosted, found)).stacks


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_the_layers_state_lives_on_the_host_and_stays_there(
  tiny, ragged_batch, kind
):
  layout = rules.make(
    mesh.make(mesh.Config(data=2, fsdp=2, tensor=2)), "fsdp_tensor"
  )
  optimizer = _optimizer(tiny, kind, streamed=True)
  first = state.init(tiny, optimizer, layout, 0)
  update = steps.make(_squares, optimizer, axes=families.axes(tiny))
  wanted = state.shardings(tiny, optimizer, layout)
  after, *_ = jax.jit(update, out_shardings=(wanted, None, None))(
    first, ragged_batch
  )
  for now in (first, after):
    for leaf in jax.tree.leaves(_hosted(now.opt_state)):
      assert leaf.sharding.memory_kind == (
        "pinned_host" if leaf.ndim else "device"
      )
      assert leaf.ndim < 3 or not leaf.sharding.is_fully_replicated
    here = jax.tree.leaves(now.params) + [now.step]
    assert {x.sharding.memory_kind for x in here} == {"device"}
  assert any(np.any(x) for x in jax.tree.leaves(_hosted(after.opt_state)))


def _squares(params, batch, key):
  del key
  total = sum((x**2).sum() for x in jax.tree.leaves(params))
  n = batch.weights.sum()
  return n * total, n, {}


def test_a_bad_step_leaves_it_as_it_was(tiny, ragged_batch):
  optimizer = _optimizer(tiny, streamed=True)
  layout = rules.make(mesh.make(mesh.Config(), jax.devices()[:1]), "dp")
  update = jax.jit(steps.make(_squares, optimizer, axes=families.axes(tiny)))
  good, *_ = update(state.init(tiny, optimizer, layout, 0), ragged_batch)
  endless = dataclasses.replace(
    ragged_batch, weights=ragged_batch.weights * np.inf
  )
  bad, _, verdict = update(good, endless)
  assert not verdict.is_good
  chex.assert_trees_all_equal(bad.opt_state, good.opt_state)
  chex.assert_trees_all_equal(bad.params, good.params)


@pytest.mark.slow
def test_a_run_is_the_same_to_the_bit_and_resumes(page, tmp_path):
  """C5: what lies where changes no number."""

  def run(name, **settings):
    config = page(
      optim=settings,
      mesh={"data": 2, "fsdp": 4, "rules": "fsdp"},
      checkpoint={"every_steps": 3},
    )
    pretrain.main(config, epath.Path(tmp_path / name))
    return checkpoint.load(epath.Path(tmp_path / name))[1]

  plain = run("plain")
  chex.assert_trees_all_equal(run("streamed", streamed=True), plain)
  shutil.rmtree(tmp_path / "streamed" / "checkpoints" / "6")
  chex.assert_trees_all_equal(run("streamed", streamed=True), plain)
