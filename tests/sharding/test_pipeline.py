"""The timetable of a pipeline, and that it is what really runs: S11."""

import collections
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P

from sharding import mesh, pipeline, rules
from sharding.pipeline import Config, Timetable

SLOW = pytest.mark.slow
TABLES = {
  "gpipe": Timetable(4, 6, Config(schedule="gpipe")),
  "1f1b": Timetable(4, 6),
  "two stages": Timetable(2, 2),
  "few parts": Timetable(4, 2),
  "one part": Timetable(3, 1, Config(schedule="gpipe")),
  "circular": Timetable(3, 6, Config(schedule="gpipe", n_repeats=2)),
  "interleaved": Timetable(3, 6, Config(n_repeats=2)),
  "one group": Timetable(2, 2, Config(n_repeats=3)),
}


@functools.cache
def _worked(name: str, way: str) -> dict[tuple[int, int, int], tuple]:
  """(part, chunk) of each live stage -> the tick and the slot."""
  table = TABLES[name]
  n_ticks = table.turn + table.n_ticks
  work = jax.vmap(getattr(table, way))(jnp.arange(n_ticks))
  work = jax.tree.map(np.asarray, work)
  found = {}
  for tick, stage in zip(*np.nonzero(work.live), strict=True):
    chunk = work.repeat[tick, stage] * table.n_stages + stage
    item = int(work.part[tick, stage]), int(chunk)
    assert item not in found
    found[item] = int(tick), int(work.slot[tick, stage])
  return found


@pytest.mark.parametrize("name", TABLES)
def test_every_part_passes_every_chunk_in_order_there_and_back(name):
  table = TABLES[name]
  n_chunks = table.n_stages * table.config.n_repeats
  there, back = _worked(name, "forward"), _worked(name, "backward")
  wanted = {(m, c) for m in range(table.n_parts) for c in range(n_chunks)}
  assert set(there) == set(back) == wanted
  for m, c in wanted:
    if c:
      # What a stage gives is there in the very next tick, and never later.
      assert there[m, c][0] == there[m, c - 1][0] + 1
      assert back[m, c - 1][0] == back[m, c][0] + 1
    assert back[m, c][0] >= there[m, c][0]


@pytest.mark.parametrize("name", TABLES)
def test_an_input_waits_where_it_is_looked_for(name):
  table = TABLES[name]
  there, back = _worked(name, "forward"), _worked(name, "backward")
  slots = collections.defaultdict(list)
  for item, (tick, slot) in there.items():
    assert back[item][1] == slot == tick % table.n_waiting < table.n_waiting
    stage = item[1] % table.n_stages
    slots[stage, slot].append((tick, back[item][0]))
  for stays in slots.values():
    stays.sort()
    for (_, gone), (comes, _) in zip(stays, stays[1:], strict=False):
      assert gone < comes


def test_1f1b_keeps_as_many_inputs_as_stages_whatever_the_parts():
  n_waiting = [Timetable(4, n).n_waiting for n in (8, 32, 128)]
  assert n_waiting == [7, 7, 7]
  assert Timetable(4, 32, Config(schedule="gpipe")).n_waiting == 35


def test_repeats_want_whole_groups():
  with pytest.raises(ValueError, match="6 parts make no whole groups of 4"):
    Timetable(4, 6, Config(n_repeats=2))


def _toy(table, count=None, place=lambda x: x):
  """A program of small matrices, and the same without a pipeline.

  It counts, where asked to, and places what comes before the layers.
  """
  rng = np.random.default_rng(0)
  n_chunks = table.n_stages * table.config.n_repeats
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  params = {"in": draw(3, 4), "out": draw(4)}
  layers, parts = draw(n_chunks, 4, 4) / 2, draw(table.n_parts, 4, 3)

  @jax.custom_vjp
  def tell(x):
    jax.debug.callback(lambda _: count("forward"), x[0, 0])
    return x

  def tell_back(_, g):
    jax.debug.callback(lambda _: count("backward"), g[0, 0])
    return (g,)

  tell.defvjp(lambda x: (tell(x), None), tell_back)

  def first(rest, part):
    return place(part @ rest["in"])

  def layer(w, x):
    return jnp.tanh(x @ w) + x

  def stage(rest, chunk, x, part, number):
    del rest, part, number
    return layer(chunk, tell(x) if count else x)

  def last(rest, x, part):
    loss = jnp.square(x @ rest["out"]).sum()
    return loss, {"n": jnp.ones(()), "sum": part.sum()}

  def whole(layers, params):
    total = 0.0
    for part in parts:
      x = part @ params["in"]
      for w in layers:
        x = layer(w, x)
      total += last(params, x, part)[0]
    return total

  def staged(layers, params):
    chunks = layers.reshape(-1, table.n_stages, 4, 4).swapaxes(0, 1)
    program = pipeline.Program(first, stage, last)
    return pipeline.run(table, program, chunks, params, parts)

  return whole, staged, (layers, params), parts


QUICK = ("gpipe", "1f1b", "interleaved")


@pytest.mark.parametrize(
  "name",
  [*QUICK, *(pytest.param(n, marks=SLOW) for n in TABLES if n not in QUICK)],
)
def test_the_bubble_of_what_runs_is_that_of_theory(name):
  """Counted by the stages themselves; loss and gradients are the plain ones."""
  table, counts = TABLES[name], collections.Counter()
  whole, staged, params, parts = _toy(table, lambda way: counts.update([way]))
  loss, slopes = jax.jit(jax.value_and_grad(whole, (0, 1)))(*params)

  alone, more = jax.jit(staged)(*params)
  jax.effects_barrier()
  n_useful = table.n_parts * table.n_stages * table.config.n_repeats
  assert 1 - n_useful / counts["forward"] == pytest.approx(table.bubble)
  assert more["n"] == table.n_parts
  np.testing.assert_allclose(more["sum"], parts.sum(), rtol=1e-5)

  counts.clear()
  function = jax.jit(jax.value_and_grad(staged, (0, 1), has_aux=True))
  (total, more), grads = function(*params)
  jax.effects_barrier()
  # Forward, and again behind: the stages keep their inputs alone.
  assert 1 - 2 * n_useful / counts["forward"] == pytest.approx(table.bubble)
  assert 1 - n_useful / counts["backward"] == pytest.approx(table.bubble)
  s, m = table.n_stages, table.n_parts
  theory = (s - 1) / (table.config.n_repeats * m + s - 1)
  assert table.bubble == pytest.approx(theory)

  assert more["n"] == table.n_parts
  np.testing.assert_allclose([alone, total], [loss, loss], rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-5 * np.abs(b).max()
    ),
    grads,
    slopes,
  )


def test_replicas_that_train_alone_have_stages_of_their_own():
  """Rows are split, too: XLA wants both ways of a branch in one place."""
  place = functools.partial(
    jax.lax.with_sharding_constraint, shardings=P("data")
  )
  whole, staged, params, _ = _toy(TABLES["two stages"], place=place)
  copies = jax.tree.map(lambda x: jnp.stack([x, x / 2]), params)
  slopes = jax.vmap(jax.grad(whole, (0, 1)))(*copies)
  layout = rules.make(mesh.make(mesh.Config(replica=2, data=2, stage=2)), "dp")

  def of_one(copy):
    own = jax.tree.map(lambda x: x[0], copy)
    grads, _ = jax.grad(staged, (0, 1), has_aux=True)(*own)
    return jax.tree.map(lambda x: x[None], grads)

  with layout.use():
    grads = jax.jit(lambda x: rules.apart(of_one, "replica")(x))(copies)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-5 * np.abs(b).max()
    ),
    grads,
    slopes,
  )
