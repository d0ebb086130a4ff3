"""Bad steps: found, not applied, named; T1, T2, T3."""

import json

import chex
import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from benchmarks.faults import runs
from data.batch import Batch
from models import families
from sharding import mesh, rules
from train import pretrain
from train.core import (
  guard,
  loop,
  optim,
  rollback,
  schedule,
  sinks,
  state,
  step,
  track,
)
from train.objectives import lm

LEAF = "stack/layers/block_0/attention/q"


@pytest.fixture(scope="module")
def trained(tiny, ragged_batch):
  """A compiled step, and the state after one good step, on the host."""
  layout = rules.make(mesh.make(mesh.Config(data=8), jax.devices()), "dp")
  factor = schedule.make(schedule.CONFIGS["constant"](), 10)
  optimizer = optim.make(
    optim.CONFIGS["adamw"](lr=1e-2, ema=0.9), factor, families.axes(tiny)
  )
  update = step.make(lm.make(lm.Config(chunk_tokens=8), tiny), optimizer)
  places = state.shardings(tiny, optimizer, layout)
  first = jax.device_put(
    jax.device_get(
      state.start(families.init(tiny, jax.random.key(0)), optimizer)
    ),
    places,
  )

  def put(tree):
    return jax.device_put(tree, layout.batch)

  compiled, _ = loop.compile_step(update, first, put(ragged_batch), layout)
  after, _, verdict = compiled(first, put(ragged_batch))
  assert bool(verdict.is_good)
  kept = jax.device_get(after)
  return lambda s, b: compiled(jax.device_put(s, places), put(b)), kept


def _poisoned(tree, name, value):
  """The tree with one entry of one leaf replaced."""
  paths, structure = jax.tree_util.tree_flatten_with_path(tree)
  leaves = []
  for path, leaf in paths:
    if jax.tree_util.keystr(path, simple=True, separator="/") == name:
      leaf = np.array(leaf)
      leaf.flat[leaf.size // 2] = value
    leaves.append(leaf)
  return jax.tree.unflatten(structure, leaves)


def _names(tree):
  return [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_parameter_is_named_and_nothing_moves(
  trained, ragged_batch, value
):
  run, kept = trained
  for name in _names(kept.params):
    bad = kept.replace(params=_poisoned(kept.params, name, value))
    after, metrics, verdict = run(bad, ragged_batch)
    assert not bool(verdict.is_good)
    said = guard.reason(jax.device_get(verdict), _names(kept.params))
    assert said == f"parameter {name} is not finite"
    assert int(after.step) == int(kept.step) + 1
    for part in ("params", "opt_state", "guard"):
      chex.assert_trees_all_equal(
        jax.device_get(getattr(after, part)), getattr(bad, part)
      )
    assert set(loop.divide([metrics])) == {"bad"}


def test_a_bad_batch_is_not_applied(trained, ragged_batch):
  run, kept = trained
  weights = np.array(ragged_batch.weights)
  weights[3, 5] = np.nan
  after, _, verdict = run(kept, ragged_batch.replace(weights=weights))
  said = guard.reason(jax.device_get(verdict), _names(kept.params))
  assert said == "a weight of the batch is not finite"
  for part in ("params", "opt_state", "guard"):
    chex.assert_trees_all_equal(
      jax.device_get(getattr(after, part)), getattr(kept, part)
    )


def test_a_bad_gradient_is_named(tiny, ragged_batch):
  """A square root at zero: the loss is finite, one leaf's gradient is not."""
  plain = lm.make(lm.Config(chunk_tokens=8), tiny)

  def objective(params, batch, key):
    total, weight, metrics = plain(params, batch, key)
    leaf = params["stack"]["layers"]["block_0"]["attention"]["q"]
    off = jnp.sqrt(jnp.square(leaf - jax.lax.stop_gradient(leaf)).sum())
    return total + off, weight, metrics

  factor = schedule.make(schedule.CONFIGS["constant"](), 10)
  axes = families.axes(tiny)
  optimizer = optim.make(optim.CONFIGS["sgd"](lr=0.1), factor, axes)
  first = state.start(families.init(tiny, jax.random.key(0)), optimizer)
  after, _, verdict = jax.jit(step.make(objective, optimizer))(
    first, ragged_batch
  )
  said = guard.reason(jax.device_get(verdict), _names(first.params))
  assert said.startswith(f"the gradient of {LEAF} is not finite (loss 5.")
  chex.assert_trees_all_equal(after.params, first.params)


def test_a_good_step_is_the_step_without_a_guard(tiny, ragged_batch, trained):
  """The guard that lets through leaves the bits of the update alone."""
  run, kept = trained
  factor = schedule.make(schedule.CONFIGS["constant"](), 10)
  optimizer = optim.make(
    optim.CONFIGS["adamw"](lr=1e-2, ema=0.9), factor, families.axes(tiny)
  )
  objective = lm.make(lm.Config(chunk_tokens=8), tiny)

  @jax.jit
  def plain(s, batch):
    def mean(params):
      total, weight, _ = objective(params, batch, jax.random.key(0))
      return total / weight

    grads = jax.grad(mean)(s.params)
    updates, _ = optimizer.update(
      grads, s.opt_state, s.params, value=0.0, grad=grads, value_fn=mean
    )
    return jax.tree.map(jnp.add, s.params, updates)

  after, _, _ = run(kept, ragged_batch)
  chex.assert_trees_all_close(
    jax.device_get(after.params),
    jax.device_get(plain(kept, ragged_batch)),
    rtol=1e-5,
    atol=1e-6,
  )


def _judged(config, losses, grad_norms):
  """The verdicts over a series, with nothing but these figures."""
  one = {"x": jnp.ones(())}
  batch = jax.tree.map(jnp.asarray, _row())

  def body(history, figures):
    verdict, history = guard.judge(
      config,
      history,
      loss=figures[0],
      grad_norm=figures[1],
      params=one,
      grads=one,
      batch=batch,
    )
    return history, verdict.is_good

  figures = jnp.stack([jnp.asarray(losses), jnp.asarray(grad_norms)], 1)
  _, good = jax.jit(lambda f: jax.lax.scan(body, guard.start(), f))(
    figures.astype(jnp.float32)
  )
  return ~np.asarray(good)


def _row():
  ids = np.zeros((1, 1), np.int32)
  return Batch(ids, ids, np.ones((1, 1), np.float32), ids, ids)


def _curve(rng, n_steps):
  """A loss that falls as a power, with heavy-tailed noise, and its gradients."""
  at = np.arange(n_steps)
  noise = 0.03 * rng.standard_t(6, n_steps)
  losses = 2 + 8 * (1 + at / 20) ** -0.5 + noise
  grads = np.exp(0.2 * rng.standard_t(6, n_steps)) * (1 + 5 * np.exp(-at / 50))
  return losses, grads


def test_planted_spikes_are_found_and_little_else():
  rng = np.random.default_rng(0)
  losses, grads = _curve(rng, 20_000)
  false = _judged(guard.Config(), losses, grads)
  assert false.sum() <= 2  # at most one in 10,000
  at = rng.choice(np.arange(200, 20_000), 200, replace=False)
  losses[at[:100]] += rng.uniform(1.5, 5, 100)
  grads[at[100:]] *= rng.uniform(50, 500, 100)
  found = _judged(guard.Config(), losses, grads)
  assert found[at].mean() >= 0.95
  found[at] = False
  assert found.sum() <= 4
  assert not _judged(guard.Config(spike_sigmas=0.0), losses, grads).any()


def _fail(monkeypatch, bad_batches, poison):
  """Poisons the batches of these numbers of the first stream, and where any
  stream comes to the same text again.
  """
  take = pretrain.pipeline.TrainBatches.__next__
  bad_text, streams, numbers = set(), [], iter(range(10_000))

  def poisoned(self):
    batch = take(self)
    streams.append(self)
    text = batch.tokens.tobytes()
    if self is streams[0] and next(numbers) in bad_batches:
      bad_text.add(text)
    return poison(batch) if text in bad_text else batch

  monkeypatch.setattr(pretrain.pipeline.TrainBatches, "__next__", poisoned)


def _nan_weights(batch):
  batch.weights[0, 0] = np.nan
  return batch


def test_a_bad_step_is_told_with_its_documents(page, tmp_path, monkeypatch):
  _fail(monkeypatch, {2}, _nan_weights)
  config = page(train={"steps": 6}, checkpoint={"every_steps": 2})
  said = []
  monkeypatch.setattr(track.Terminal, "say", lambda _, line: said.append(line))
  assert pretrain.main(config, epath.Path(tmp_path)) == 0
  (line,) = [line for line in said if "not applied" in line]
  assert line.startswith("step 3 is not applied: a weight of the batch")
  found = json.loads((tmp_path / "bad" / "3.0.json").read_text())
  rows = found["documents"]
  assert sorted(map(int, rows)) == list(range(8))
  assert all(
    entry[2].endswith(".txt") for row in rows.values() for entry in row
  )
  batch = np.load(tmp_path / "bad" / "3.0.npz")
  assert np.isnan(batch["weights"]).sum() == 1
  steps = [r for r in sinks.rows(epath.Path(tmp_path)) if r["kind"] == "train"]
  assert [r["bad"] for r in steps] == [0, 0, 1, 0, 0, 0]
  assert "loss" not in steps[2] and all(
    np.isfinite(r["loss"]) for r in steps[3:]
  )


def test_too_many_bad_steps_go_back_and_on_with_other_data(
  page, tmp_path, monkeypatch
):
  _fail(monkeypatch, {5, 6, 7}, _nan_weights)
  config = page(
    train={"steps": 10},
    checkpoint={"every_steps": 2},
    guard={"max_bad_in_row": 3},
  )
  workdir = epath.Path(tmp_path)
  assert pretrain.main(config, workdir) == 0
  (line,) = [
    json.loads(text)
    for text in (workdir / rollback.FILE).read_text().splitlines()
  ]
  # Step 6 was saved with the parameters of step 5: a bad step moves nothing.
  assert (line["from"], line["to"]) == (8, 6)
  assert line["loop"]["n_batches"] == 8
  steps = [r for r in sinks.rows(workdir) if r["kind"] == "train"]
  assert [r["step"] for r in steps] == list(range(1, 11))
  assert np.isfinite(steps[-1]["loss"])
  progress = json.loads(
    (workdir / "checkpoints" / "10" / "data" / "0.json").read_text()
  )
  assert progress["loop"]["n_batches"] == 12  # ten steps, and two gone back
  assert progress["loop"]["n_gone_back"] == 1


@pytest.mark.slow
def test_a_run_that_only_goes_round_stops(page, tmp_path, monkeypatch):
  _fail(monkeypatch, range(4, 1000), _nan_weights)
  config = page(
    train={"steps": 20},
    checkpoint={"every_steps": 2},
    guard={"max_bad_in_row": 2, "max_rollbacks": 2},
  )
  with pytest.raises(ValueError, match="went back 2 times and comes to bad"):
    pretrain.main(config, epath.Path(tmp_path))


@pytest.mark.slow
def test_a_life_after_a_rollback_skips_the_same_data(
  page, tmp_path, monkeypatch
):
  """Killed right behind a rollback, the run ends at the bits of one that was
  not: the line in rollbacks.jsonl takes the place of the stream's.
  """
  _fail(monkeypatch, {5, 6, 7}, _nan_weights)
  config = page(
    train={"steps": 10},
    checkpoint={"every_steps": 4},
    guard={"max_bad_in_row": 3},
  )
  ends = []
  for name, killed in (("whole", False), ("killed", True)):
    workdir = epath.Path(tmp_path) / name
    if killed:
      with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(*_):
          raise KeyboardInterrupt

        patch.setattr(guard.Watch, "begin", _third(guard.Watch.begin, stop))
        pretrain.main(config, workdir)
      assert (workdir / rollback.FILE).exists()
    pretrain.main(config, workdir)
    newest = workdir / "checkpoints" / "10"
    ends.append((newest / "data" / "0.json").read_text())
    ends.append((newest / "manifest.json").read_text())
  assert ends[0] == ends[2]


def _third(first, then):
  """The method at its first two calls, another one from the third on."""
  calls = iter([first, first])

  def call(self, *arguments):
    return next(calls, then)(self, *arguments)

  return call


@pytest.mark.slow
def test_bad_steps_in_a_row_are_counted_across_lives(
  page, tmp_path, monkeypatch
):
  """Killed amid bad steps, the run goes back where one that was not does."""
  _fail(monkeypatch, {5, 6, 7}, _nan_weights)  # steps 6, 7, 8
  config = page(
    train={"steps": 10},
    checkpoint={"every_steps": 2},
    guard={"max_bad_in_row": 3},
  )
  whole, killed = (epath.Path(tmp_path) / name for name in ("whole", "killed"))
  pretrain.main(config, whole)
  add = guard.Watch.add

  def stop(self, step, *rest):
    if step == 7:
      raise KeyboardInterrupt
    add(self, step, *rest)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(guard.Watch, "add", stop)
    pretrain.main(config, killed)
  assert not (killed / rollback.FILE).exists()
  pretrain.main(config, killed)
  for name in (rollback.FILE, "checkpoints/10/data/0.json"):
    assert (whole / name).read_text() == (killed / name).read_text()
  assert runs.digest(whole) == runs.digest(killed)
