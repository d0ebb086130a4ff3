"""muP, 2203.03466: a coordinate check, the factors by hand, what is refused.

The coordinate check is that of the paper's appendix D.1: what training changes
must be as large in a wide model as in the base: N12.
"""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from configs import door
from data.batch import Batch
from models import families, gpt, leaves, llama
from sharding import mesh, rules
from train import pretrain
from train.core import optim, state, step, width
from train.objectives import lm

BASE = 64
LR = 0.001  # small: four steps of 0.01 are paths of their own at each width


def model(d_model: int) -> llama.Config:
  """Wider by more heads: all that grows is in proportion to d_model."""
  return llama.Config(
    vocab_size=64,
    d_model=d_model,
    n_layers=2,
    n_heads=d_model // 16,
    n_kv_heads=d_model // 32,
    d_head=16,
    d_ff=2 * d_model,
    dtype="float32",
    scanned=False,  # every layer's activations can be captured
  )


def random_batch() -> Batch:
  rng = np.random.default_rng(0)
  tokens, targets = rng.integers(0, 64, (2, 4, 16)).astype(np.int32)
  ones = np.ones((4, 16), np.int32)
  positions = np.broadcast_to(np.arange(16, dtype=np.int32), (4, 16))
  batch = Batch(tokens, targets, ones.astype(np.float32), ones, positions)
  return jax.tree.map(jnp.asarray, batch)


def activations(config, params, batch):
  """Name -> what each attention, MLP and layer puts out, and the logits."""
  parts = llama.Block | llama.Attention | llama.MLP
  (hidden, _), captured = families.build(config).apply(
    {"params": params},
    batch.tokens,
    batch.positions,
    batch.segment_ids,
    capture_intermediates=lambda part, method: (
      isinstance(part, parts) and method == "__call__"
    ),
  )
  flat = jax.tree.leaves_with_path(captured["intermediates"]["stack"])
  named = {
    jax.tree_util.keystr(path, simple=True, separator="/"): x
    for path, x in flat
  }
  named = {path.split("/__call__")[0]: x for path, x in named.items()}
  return {**named, "logits": families.logits(config, params, hidden)}


@functools.cache
def coordinates(d_model: int, mup_width: int | None):
  """Name -> rms at first, rms after four steps, rms of the change."""
  config, batch = model(d_model), random_batch()
  axes = families.axes(config)
  adam = optim.AdamW(lr=LR, mup_width=mup_width)
  optimizer = optim.make(adam, lambda _: 1.0, axes)
  update = step.make(lm.make(lm.Config(chunk_tokens=64), config), optimizer)

  @jax.jit
  def train(key):
    params = families.init(config, key)
    if mup_width is not None:
      params = width.rescale(params, axes, mup_width)
    first = state.start(params, optimizer)
    last, _ = jax.lax.scan(lambda s, _: update(s, batch)[:2], first, length=4)
    # One model, mapped over both states, is compiled once.
    both = jax.tree.map(lambda *x: jnp.stack(x), params, last.params)
    seen = jax.lax.map(lambda p: activations(config, p, batch), both)
    return {k: (rms(a), rms(b), rms(b - a)) for k, (a, b) in seen.items()}

  return jax.device_get(train(jax.random.key(0)))


def rms(x):
  return jnp.sqrt(jnp.mean(jnp.square(x)))


def over_base(d_model: int, mup_width: int | None):
  """Name -> each rms over that of the base."""
  base = coordinates(BASE, None)
  return {
    name: np.divide(values, base[name])
    for name, values in coordinates(d_model, mup_width).items()
  }


def slow(d_model):
  return pytest.param(d_model, marks=pytest.mark.slow)


@pytest.mark.parametrize("d_model", [128, slow(256), slow(512), slow(1024)])
def test_activations_and_their_changes_stay_with_the_width(d_model):
  ratios = over_base(d_model, BASE)
  # Nothing is learned yet, so the head sees noise: it fades as 1 / sqrt(m).
  at_first = ratios["logits"][0]
  np.testing.assert_allclose(at_first, (BASE / d_model) ** 0.5, rtol=0.15)
  ratios["logits"] = ratios["logits"][1:]
  for name, ratio in ratios.items():
    assert np.all((ratio > 1 / 1.5) & (ratio < 1.5)), (name, ratio)


@pytest.mark.slow
def test_without_scaling_they_grow():
  ratios = over_base(512, None)
  for name, (_, _, change) in ratios.items():
    assert change > 4, (name, change)
  assert ratios["layer_0/mlp"][2] > 30


AXES = {
  "embed": {"table": ("vocab", "embed")},
  "position": {"table": ("position", "embed")},
  "head": {"table": ("vocab", "embed")},
  "norm": {"scale": ("norm",)},
  "stack": {
    "q": ("layers", "embed", "heads", "head"),
    "k": ("layers", "embed", "kv_heads", "head"),
    "q_bias": ("layers", "heads", "head"),
    "q_norm": ("layers", "head"),
    "o": ("layers", "heads", "head", "embed"),
    "up": ("layers", "embed", "mlp"),
    "down": ("layers", "mlp", "embed"),
    "experts": ("layers", "experts", "embed", "mlp"),
    "label": ("embed", "labels"),
    "patch": ("pixels", "embed"),
  },
}
HIDDEN = {"q", "k", "o", "up", "down", "experts"}  # all else in the stack: 1


def ones_of(axes):
  sizes = {"embed": 12, "norm": 12}  # three times the base
  return leaves.map(
    lambda names: jnp.ones([sizes.get(n, 2) for n in names]), axes
  )


@pytest.mark.parametrize(
  ("scale", "hidden", "output"),
  [
    (lambda x: width.rescale(x, AXES, 4), 3**-0.5, 1 / 3),
    (lambda x: width.scale_by_width(AXES, 4).update(x, ())[0], 1 / 3, 1 / 3),
  ],
  ids=["init", "step"],
)
def test_factors_are_those_of_table_3(scale, hidden, output):
  scaled = scale(ones_of(AXES))
  by_name = {name: hidden for name in HIDDEN} | {"label": output}
  expected = jax.tree.map(jnp.ones_like, scaled)
  expected["head"]["table"] *= output
  for name in by_name:
    expected["stack"][name] *= by_name[name]
  chex.assert_trees_all_close(scaled, expected, rtol=1e-6)


def move(name, **fields):
  """Of weights and gradients of ones."""
  config = optim.CONFIGS[name](lr=LR, clip=None, **fields)
  optimizer = optim.make(config, lambda _: 1.0, AXES)
  ones = ones_of(AXES)
  return jax.jit(optimizer.update)(ones, optimizer.init(ones), ones)[0]


@pytest.mark.parametrize("name", ["adamw", "lion", "schedule_free"])
def test_a_step_is_scaled_and_its_decay_is_not(name):
  expected = width.scale_by_width(AXES, 4).update(
    move(name, weight_decay=0.0), ()
  )[0]
  for weight in HIDDEN | {"label", "patch"}:  # the rest is no matrix
    expected["stack"][weight] -= LR * 0.5
  scaled = move(name, weight_decay=0.5, mup_width=4)
  chex.assert_trees_all_close(scaled, expected, atol=1e-6)


def test_the_base_is_as_it_was_to_the_bit():
  params = jax.tree.map(lambda x: 0.1 * x, ones_of(AXES))
  chex.assert_trees_all_equal(width.rescale(params, AXES, 12), params)
  chex.assert_trees_all_equal(move("adamw", mup_width=12), move("adamw"))


def test_the_first_state_has_the_scaled_init():
  config = dataclasses.replace(model(BASE), n_layers=1)
  axes, layout = (
    families.axes(config),
    rules.make(mesh.make(mesh.Config(data=1), jax.devices()[:1]), "dp"),
  )
  sgd = optim.make(optim.SGD(lr=LR), lambda _: 1.0, axes)
  plain, scaled = (
    state.init(config, sgd, layout, 0, base).params for base in (None, 16)
  )
  chex.assert_trees_all_close(scaled, width.rescale(plain, axes, 16), rtol=1e-6)


def test_init_and_steps_of_a_run_obey_the_setting(page, tmp_path, monkeypatch):
  """The rest of pretraining is not needed, and cut off."""

  class Begun(Exception):
    pass

  def init(*args):
    raise Begun(args[-1])

  monkeypatch.setattr(state, "init", init)
  with pytest.raises(Begun, match="16"):
    pretrain.main(page(optim={"mup_width": 16}), epath.Path(tmp_path))


@pytest.mark.parametrize(
  "config",
  [
    dataclasses.replace(model(BASE), tied=True),
    gpt.Config(vocab_size=64, d_model=64, n_layers=1, n_heads=4, d_ff=64),
  ],
  ids=["llama", "gpt"],
)
def test_a_tied_head_is_refused(config):
  with pytest.raises(ValueError, match="mup_width=32 with a tied head.*tied=F"):
    optim.make(
      optim.AdamW(lr=LR, mup_width=32), lambda _: 1.0, families.axes(config)
    )


@pytest.mark.parametrize("name", ["sgd", "lamb", "adafactor", "muon", "lbfgs"])
def test_other_optimizers_do_not_know_the_setting(name):
  fields = {} if name == "lbfgs" else {"lr": LR}
  with pytest.raises(ValueError, match="mup_width"):
    door.build(
      {"optim": {"name": name, "mup_width": 32, **fields}},
      {"optim": optim.CONFIGS},
    )


def test_a_base_without_width_is_refused():
  with pytest.raises(ValueError, match="mup_width=0: expected int in"):
    optim.AdamW(lr=LR, mup_width=0)
