"""Every leaf lies where its rules say, however small: S2.

After init and a step, averages and moments too; and the gradients between. After
a restore: test_checkpointing.py.
"""

import jax
import optax
import pytest

from benchmarks.parity import cases, cells, meshes
from models import families
from sharding import mesh, report
from train.core import loop, optim, schedule, state, step
from train.objectives import lm

MODEL = cells.FAMILIES["llama"]
ON = mesh.Config(data=4, fsdp=2, rules="zero2")


@pytest.fixture(scope="module")
def averaged():
  axes = families.axes(MODEL)
  adam = optim.CONFIGS["adamw"](lr=1e-3, ema=0.9)
  rate = schedule.make(schedule.CONFIGS["constant"](), 10)
  return optim.make(adam, rate, axes)


def test_the_state_is_born_where_its_rules_say(averaged):
  layout = meshes.place(ON)
  first = state.init(MODEL, averaged, layout, seed=0)
  wanted = state.shardings(MODEL, averaged, layout)
  report.check(first, wanted, limit_bytes=0)
  table = optax.tree.get(first.opt_state, "mean")["embed"]["table"]
  assert table.sharding.shard_shape(table.shape) == (cells.VOCAB, 32 // 2)
  whole = jax.device_put(table, layout.replicated)
  places = wanted.opt_state
  moved = optax.tree.set(
    first.opt_state, mean={**first.params, "embed": {"table": whole}}
  )
  with pytest.raises(ValueError, match="mean.*embed"):
    report.check(moved, places, limit_bytes=0)


def test_gradients_lie_where_their_rules_say():
  """As the compiled step has them on their way to the optimizer."""
  layout, axes = meshes.place(ON), families.axes(MODEL)
  shapes = families.abstract(MODEL)
  wanted = layout.shardings(axes, shapes, "grads")
  seen = {}

  def spy(grads, opt_state, params=None, **extra):
    def look(path, g):
      keep = lambda place: seen.__setitem__(str(path), place)  # noqa: E731
      jax.debug.inspect_array_sharding(g, callback=keep)

    jax.tree.map_with_path(look, grads)
    return grads, opt_state

  sgd = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), spy)
  objective = lm.make(lm.Config(chunk_tokens=8), MODEL)
  update = step.make(objective, sgd, axes=axes, grad_shardings=wanted)
  first = jax.device_get(state.start(cases.params(MODEL), sgd))
  first = jax.device_put(first, state.shardings(MODEL, sgd, layout))
  batch = jax.device_put(cells.batch(True), layout.batch)
  loop.compile_step(update, first, batch, layout)
  split = 0
  for (path, leaf), place in zip(
    jax.tree.leaves_with_path(shapes), jax.tree.leaves(wanted), strict=True
  ):
    found = seen[str(path)].shard_shape(leaf.shape)
    assert found == place.shard_shape(leaf.shape), path
    split += found != leaf.shape
  assert split > len(seen) / 2
