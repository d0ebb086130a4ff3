"""Pipelines give the numbers of one device: S1, S3, S8, S11."""

import dataclasses
import functools
import json

import chex
import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from models import checkpoint, families, mixtral
from models.layers import moe
from sharding import mesh, report, rules
from sharding.pipeline import Config
from train import evaluate, pretrain
from train.core import loop, optim, schedule, staged, state, step
from train.objectives import lm

SLOW = pytest.mark.slow
GPIPE = Config(schedule="gpipe")
CIRCULAR = Config(schedule="gpipe", n_repeats=2)
INTERLEAVED = Config(n_repeats=2)


def _layout(table: str, sizes: dict[str, int]) -> rules.Layout:
  devices = jax.devices() if sizes else jax.devices()[:1]
  return rules.make(mesh.make(mesh.Config(**sizes), devices), table)


@functools.cache
def _initial(model):
  return jax.device_get(families.init(model, jax.random.key(3)))


def _run(model, batch, n_micro, table="dp", sizes=None, how=None):
  """Two steps; returns the parameters, on the host, and the metrics."""
  layout = _layout(table, sizes or {})
  axes = families.axes(model)
  config = optim.CONFIGS["sgd"](lr=0.3, momentum=0.9, clip=0.5)
  transform = optim.make(
    config, schedule.make(schedule.CONFIGS["constant"](), 10), axes
  )
  objective = lm.make(lm.Config(chunk_tokens=8, z_loss=1e-3), model)
  update = step.make(
    staged.make(objective, model, layout, n_micro, how),
    transform,
    n_micro=n_micro if layout.n_stages == 1 else 1,
    grad_shardings=layout.shardings(axes, families.abstract(model), "grads"),
  )
  first = state.start(_initial(model), transform)
  places = state.shardings(model, transform, layout)
  last = jax.device_put(jax.device_get(first), places)
  batch = jax.device_put(batch, layout.batch)
  compiled, _ = loop.compile_step(update, last, batch, layout)
  for _ in range(2):
    last, metrics, _ = compiled(last, batch)
  report.check(last, places)
  return jax.device_get(last.params), loop.divide([metrics])


def _compare(model, batch, n_micro, *where):
  there, metrics = _run(model, batch, n_micro, *where)
  here, expected = _run(model, batch, n_micro)
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
  chex.assert_trees_all_close(there, here, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("n_layers", "n_micro", "table", "sizes", "how"),
  [
    # Six layers on four stages: 2 + 2 + 1 + 1.
    (6, 8, "fsdp", dict(data=1, fsdp=2, stage=4), None),
    pytest.param(
      4, 3, "zero1", dict(data=1, fsdp=4, stage=2), GPIPE, marks=SLOW
    ),
    pytest.param(
      4, 4, "fsdp_tensor", dict(data=1, fsdp=2, stage=2, tensor=2), INTERLEAVED,
      marks=SLOW,
    ),
    pytest.param(5, 4, "dp", dict(data=4, stage=2), CIRCULAR, marks=SLOW),
  ],
)  # fmt: skip
def test_llama_in_stages(
  tiny, ragged_batch, n_layers, n_micro, table, sizes, how
):
  model = dataclasses.replace(tiny, n_layers=n_layers)
  if n_micro == 3:
    ragged_batch = jax.tree.map(lambda x: x[:12], ragged_batch)
  _compare(model, ragged_batch, n_micro, table, sizes, how)


@pytest.mark.parametrize(
  ("room", "n_layers", "n_micro", "table", "sizes", "how"),
  [
    # Of three layers, one stage has two: what the empty place says of its
    # router must not count.
    pytest.param(
      1.25, 3, 4, "expert", dict(data=2, expert=2, stage=2), None, marks=SLOW
    ),
    pytest.param(
      None, 4, 4, "expert_tensor", dict(data=1, expert=2, stage=2, tensor=2),
      INTERLEAVED, marks=SLOW,
    ),
    pytest.param(
      1.25, 2, 2, "fsdp", dict(data=2, fsdp=2, stage=2), GPIPE, marks=SLOW
    ),
  ],
)  # fmt: skip
def test_experts_in_stages(
  tiny, ragged_batch, room, n_layers, n_micro, table, sizes, how
):
  """Balance, z-loss and dropped tokens too, part by part as on one device."""
  layers = moe.Config(
    n_experts=4, n_active=2, capacity_factor=room,
    balance_weight=0.02, z_weight=1e-3,
  )  # fmt: skip
  fields = {**vars(tiny), "d_ff": 32, "n_layers": n_layers}
  model = mixtral.Config(**fields, experts=layers)
  _compare(model, ragged_batch, n_micro, table, sizes, how)


@SLOW
def test_dropout_is_the_same_there_and_back_and_differs_between_parts(
  tiny, ragged_batch
):
  """The forward pass alone and that of the gradient draw the same masks."""
  model = dataclasses.replace(tiny, dropout=0.5)
  layout = _layout("dp", dict(data=4, stage=2))
  objective = staged.make(lm.make(lm.Config(), model), model, layout, 2)
  rows = jax.tree.map(lambda x: np.repeat(x[:4], 2, axis=0), ragged_batch)
  params = _initial(model)

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
