"""Pipelines: dropout, runs that go on without, cuts: S3, S8.

That they give the numbers of one device: tests/parity/test_meshes.py.
"""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from benchmarks.parity import cases, cells, meshes
from models import checkpoint
from sharding import mesh, rules
from train import evaluate, pretrain
from train.core import staged
from train.objectives import lm

SLOW = pytest.mark.slow


def _layout(table: str, sizes: dict[str, int]) -> rules.Layout:
  return meshes.place(mesh.Config(**sizes, rules=table) if sizes else None)


@SLOW
def test_dropout_is_the_same_there_and_back_and_differs_between_parts(
  tiny, ragged_batch
):
  """The forward pass alone and that of the gradient draw the same masks."""
  model = dataclasses.replace(tiny, dropout=0.5)
  layout = _layout("dp", dict(data=4, stage=2))
  objective = staged.make(lm.make(lm.Config(), model), model, layout, 2)
  rows = jax.tree.map(lambda x: np.repeat(x[:4], 2, axis=0), ragged_batch)
  params = cases.params(model)

  def loss(params, key):
    return objective(params, rows, key)[0]

  with layout.use():
    alone = jax.jit(loss)
    one, other = (float(alone(params, jax.random.key(i))) for i in (0, 1))
    both, _ = jax.jit(jax.value_and_grad(loss))(params, jax.random.key(0))
    plain = float(jax.jit(lambda p: objective(p, rows, None)[0])(params))
  np.testing.assert_allclose(both, one, rtol=1e-6)
  assert len({one, other, plain}) == 3


@SLOW
def test_a_run_in_stages_evaluates_and_goes_on_without(page, tmp_path, capsys):
  """Two steps in stages and two without end as four without."""
  workdir, alone = epath.Path(tmp_path / "staged"), epath.Path(tmp_path / "dp")

  def config(n_steps, **sizes):
    return page(
      model={"n_layers": 3},
      batch={"size": 16},
      mesh=sizes,
      schedule={"name": "constant", "warmup_steps": 0},
      optim={"name": "sgd", "lr": 0.1},
      train={"steps": n_steps, "n_micro": 2},
      eval={"during": ("perplexity", "samples")},
    )

  stages = dict(data=4, stage=2, rules="fsdp_tensor")
  pretrain.main(config(2, **stages), workdir)
  said = capsys.readouterr().out
  assert "2 parts through 2 stages by 1f1b, bubble 33.3%, layers 2 + 1" in said
  assert "goes on:" in said
  pretrain.main(config(4, data=8), workdir)
  pretrain.main(config(4, data=8), alone)
  ends = [
    jax.device_get(checkpoint.load(checkpoint.find(path), _layout("dp", {}))[1])
    for path in (workdir, alone)
  ]
  chex.assert_trees_all_close(*ends, rtol=1e-5, atol=1e-6)
  figures = []
  for sizes in (stages, dict(data=8)):
    evaluate.main(config(4, **sizes), workdir)
    figures.append(json.loads((workdir / "evaluation.json").read_text()))
  for name, value in figures[0].items():
    np.testing.assert_allclose(value, figures[1][name], rtol=1e-5)


def test_storage_of_uneven_layers_is_split_all_the_same():
  layout = _layout("fsdp", dict(data=2, stage=4))
  axes = ("layers", "embed", "mlp")
  even = layout.sharding(axes, (8, 32, 64))
  assert even.spec == rules.P("stage", ("fsdp", "context"), None)
  uneven = layout.sharding(axes, (6, 32, 64))
  assert uneven.spec == rules.P(None, ("fsdp", "context", "stage"), None)
  assert uneven.shard_shape((6, 32, 64)) == (6, 8, 64)
  with pytest.raises(ValueError, match="neither 'layers' nor another"):
    layout.sharding(("layers", "norm"), (6, 30))


def test_a_cut_is_as_even_as_can_be():
  cut = staged.Cut(6, 4)
  assert cut.sizes == [2, 2, 1, 1]
  layers = cut.chunks(jnp.arange(6), 2)  # stage, repeat, place
  live = cut.live.reshape(2, 2, 2).swapaxes(0, 1)
  assert layers.shape == live.shape == (2, 2, 2)
  assert layers[live].tolist() == [0, 1, 4, 2, 3, 5]
  even = staged.Cut(8, 4).chunks(jnp.arange(8), 2)
  assert even.tolist() == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_dropless_experts_in_stages_are_refused_on_tpus(monkeypatch):
  dropless = cells.FAMILIES["mixtral"]
  layout = _layout("dp", dict(data=4, stage=2))
  objective = lm.make(lm.Config(), dropless)
  staged.make(objective, dropless, layout)
  monkeypatch.setattr(rules, "platform", lambda: "tpu")
  with pytest.raises(ValueError, match="capacity_factor=None.*mesh.stage=1"):
    staged.make(objective, dropless, layout)
  experts = dataclasses.replace(dropless.experts, capacity_factor=1.25)
  staged.make(objective, dataclasses.replace(dropless, experts=experts), layout)
