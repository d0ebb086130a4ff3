"""Optimizers: closed forms, laws of stacked weights, shardings of their state.

Oracles: numpy float64 written from the papers, optax on unstacked matrices,
torch.optim (parity).
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from models import families, gpt, leaves, llama
from train.core import optim, schedule

AXES = {
  "embed": {"table": ("vocab", "embed")},
  "layers": {
    "q": ("layers", "embed", "heads", "head"),
    "q_bias": ("layers", "heads", "head"),
    "o": ("layers", "heads", "head", "embed"),
    "up": ("layers", "embed", "mlp"),
    "scale": ("layers", "norm"),
  },
  "norm": ("norm",),
}
# A line search takes seconds a leaf to compile.
FEW_AXES = {"layers": {"up": ("layers", "embed", "mlp")}, "norm": ("norm",)}
CONSTANT = schedule.Constant()
SIZES = {
  "vocab": 32,
  "embed": 16,
  "layers": 2,
  "heads": 2,
  "head": 8,
  "mlp": 24,
  "norm": 16,
}


def normal(seed, scale=1.0, axes=AXES):
  """Parameters, or gradients, of the model that the axes describe."""
  rng = np.random.default_rng(seed)
  return leaves.map(
    lambda names: jnp.asarray(
      scale * rng.standard_normal([SIZES[n] for n in names]), jnp.float32
    ),
    axes,
  )


def config(name, **fields):
  if name == "lbfgs":
    return optim.LBFGS(**fields)
  return optim.CONFIGS[name](**{"lr": 0.01, **fields})


def make(config, axes=AXES, factors=CONSTANT, total_steps=100):
  return optim.make(config, schedule.make(factors, total_steps), axes)


def bowl(params):
  return sum(jnp.sum(jnp.sin(x) ** 2) for x in jax.tree.leaves(params)) / 100


def descend(optimizer, params, n_steps, loss=bowl, state=None):
  """n_steps of full-batch descent, in the one call that fits all."""
  state = optimizer.init(params) if state is None else state

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(
      grads, state, params, value=value, grad=grads, value_fn=loss
    )
    return optax.apply_updates(params, updates), state

  for _ in range(n_steps):
    params, state = step(params, state)
  return params, state


def unroll(tree):
  """Stacked leaves -> one subtree a layer."""
  tree = dict(tree)
  layers = tree.pop("layers")
  for i in range(SIZES["layers"]):
    tree[f"layer_{i}"] = jax.tree.map(
      lambda x, i=i: x[1:] if leaves.is_names(x) else x[i],
      layers,
      is_leaf=leaves.is_names,
    )
  return tree


def paths_that_move(before, after):
  moved = jax.tree.map(
    lambda x, y: float(jnp.abs(x - y).max()) > 1e-5, before, after
  )
  flat = jax.tree.leaves_with_path(moved)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, move in flat
    if move
  }


# Laws of all optimizers --------------------------------------------------------


DESCENTS = [name for name in optim.CONFIGS if name != "lbfgs"]


@functools.cache
def descended(name):
  """Start and end of three steps on one device."""
  axes = FEW_AXES if name == "lbfgs" else AXES
  start = normal(0, axes=axes)
  end, _ = descend(make(config(name), axes), start, 3)
  return axes, start, end


@pytest.mark.parametrize("name", DESCENTS)
def test_stacked_layers_train_as_unrolled_ones(name):
  axes, start, end = descended(name)
  optimizer = make(config(name), unroll(axes))
  unrolled, _ = descend(optimizer, unroll(start), 3)
  chex.assert_trees_all_close(unroll(end), unrolled, atol=2e-6)


@pytest.fixture(scope="module")
def mesh():
  return jax.make_mesh(
    (4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2
  )


@pytest.mark.parametrize("name", optim.CONFIGS)
def test_state_is_split_like_the_parameters_and_changes_nothing(name, mesh):
  """S1, S2, S9 on eight devices, for the optimizer alone."""
  where = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor"}
  where["vocab"] = "tensor"
  axes, params, expected = descended(name)
  placed = leaves.map(
    lambda names: NamedSharding(mesh, P(*map(where.get, names))), axes
  )
  optimizer = make(config(name), axes)
  split = jax.device_put(params, placed)
  states = optim.shardings(optimizer, params, placed)
  state = jax.jit(optimizer.init, out_shardings=states)(split)

  for leaf in jax.tree.leaves(state):
    if leaf.size >= 500:  # all matrices and what mirrors them
      shard = leaf.sharding.shard_shape(leaf.shape)
      assert leaf.size == 8 * np.prod(shard), leaf.shape

  actual, _ = descend(optimizer, split, 3, state=state)
  chex.assert_trees_all_close(actual, expected, atol=1e-5)


def test_the_norm_that_clips_is_that_of_all_shards(mesh):
  """S9: the step of clipped SGD with lr 1 is -g / |g|."""
  placed = {
    "w": NamedSharding(mesh, P("fsdp", "tensor")),
    "b": NamedSharding(mesh, P("tensor")),
  }
  grads = pair(1, shape=(8, 6))
  norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
  split = jax.device_put(jax.tree.map(jnp.float32, grads), placed)
  optimizer = make(config("sgd", lr=1.0, clip=1.0), PAIR)
  updates, _ = jax.jit(optimizer.update)(split, optimizer.init(split), split)
  assert updates["w"].sharding.shard_shape((8, 6)) == (2, 3)
  assert_close(updates, {name: -g / norm for name, g in grads.items()})


def test_factored_state_is_whole_only_where_it_was_reduced(mesh):
  placed = {"w": NamedSharding(mesh, P("fsdp", "tensor"))}
  optimizer = make(config("adafactor"), {"w": ("embed", "mlp")})
  params = {"w": jnp.ones((8, 6))}
  factored = optim.shardings(optimizer, params, placed)[1][0]
  assert factored.row["w"].spec == P("fsdp", None)
  assert factored.column["w"].spec == P(None, "tensor")
  assert factored.count.spec == P()


def test_remembered_steps_of_lbfgs_are_split_behind_their_first_dim(mesh):
  placed = {"w": NamedSharding(mesh, P("fsdp"))}
  optimizer = make(config("lbfgs"), {"w": ("embed", "mlp")})
  states = optim.shardings(optimizer, {"w": jnp.ones((8, 6))}, placed)
  assert states[0].diff_params_memory["w"].spec == P(None, "fsdp", None)


@pytest.mark.parametrize("name", ["adamw", "schedule_free"])
def test_bf16_parameters_are_updated_in_fp32(name):
  """The update of bf16 parameters is that of the same values in fp32."""
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), normal(0))
  grads = jax.tree.map(lambda x: x.astype(jnp.bfloat16), normal(1))
  high = jax.tree.map(lambda x: x.astype(jnp.float32), low)
  optimizer = make(config(name))
  update = jax.jit(optimizer.update)
  updates, state = update(grads, optimizer.init(low), low)
  expected, _ = update(
    jax.tree.map(lambda x: x.astype(jnp.float32), grads),
    optimizer.init(high),
    high,
  )
  chex.assert_trees_all_close(updates, expected, atol=1e-6)
  floats = [x for x in jax.tree.leaves(state) if x.ndim]
  assert {x.dtype for x in floats} <= {jnp.dtype("float32")}
  assert {x.dtype for x in jax.tree.leaves(optim.eval_params(state, low))} == {
    jnp.dtype("bfloat16")
  }


MATRICES = {"layers/q", "layers/o", "layers/up"}


@pytest.mark.parametrize("name", DESCENTS)
def test_without_gradients_only_decayed_weights_move(name):
  """T6: the listing says which."""
  params, none = normal(0), normal(0, scale=0.0)
  optimizer = make(config(name, weight_decay=0.5, lr=0.01))
  update = jax.jit(optimizer.update)
  updates, _ = update(none, optimizer.init(params), params)
  after = optax.apply_updates(params, updates)
  assert paths_that_move(params, after) == MATRICES
  if name not in ("lamb", "schedule_free"):
    np.testing.assert_allclose(
      after["layers"]["up"], 0.995 * params["layers"]["up"], rtol=1e-6
    )


# Weight decay ------------------------------------------------------------------


@pytest.mark.parametrize(
  "model", [llama.PRESETS["qwen2_500m"], gpt.PRESETS["gpt2_124m"]]
)
def test_families_decay_all_but_norms_biases_and_tables(model):
  """T6 on real trees, told apart here by the last word of their paths."""
  for path, is_decayed in leaves.decayed(families.axes(model), None).items():
    word = path.replace("_", "/").split("/")[-1]
    assert is_decayed == (word not in ("scale", "bias", "table")), path


def test_patterns_replace_the_default():
  listing = leaves.decayed(AXES, ("*/scale", "norm", "*_bias"))
  assert {path for path, on in listing.items() if on} == MATRICES | {
    "embed/table"
  }
  assert list(listing) == sorted(listing)


def test_the_listing_names_every_parameter():
  """T6, as a run leaves it in decay.txt."""
  lines = optim.listing(config("adamw"), AXES).splitlines()
  told = {line.split()[1]: line.split()[0] for line in lines}
  assert list(told) == leaves.paths(AXES)
  assert {path for path, said in told.items() if said == "decayed"} == MATRICES
  none = optim.listing(config("adamw", weight_decay=0.0), AXES)
  assert none == optim.listing(config("lbfgs"), AXES)
  assert none == "no parameter is decayed\n"


def test_a_pattern_that_matches_nothing_is_an_error():
  settings = config("adamw", no_decay=("*/scale", "layers/q_bais"))
  with pytest.raises(ValueError, match="'layers/q_bais'.*layers/q_bias"):
    make(settings)


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    (("embed", "heads", "head"), ((0,), (1, 2))),
    (("layers", "heads", "head", "embed"), ((1, 2), (3,))),
    (("layers", "embed", "kv_heads", "head"), ((1,), (2, 3))),
    (("layers", "experts", "embed", "mlp"), ((2,), (3,))),
    (("embed", "rank"), ((0,), (1,))),
    (("height", "width", "channels", "embed"), ((0, 1, 2), (3,))),
    (("layers", "heads", "head"), ((1, 2), ())),
    (("layers", "head"), ((1,), ())),
    (("norm",), ((0,), ())),
    ((), ((), ())),
  ],
)
def test_names_tell_inputs_from_outputs(names, expected):
  assert leaves.sides(names) == expected


def test_tables_and_vectors_are_no_matrices():
  assert not leaves.is_matrix(("vocab", "embed"))
  assert not leaves.is_matrix(("position", "embed"))
  assert not leaves.is_matrix(("layers", "heads", "head"))
  assert leaves.is_matrix(("layers", "mlp", "embed"))


# Each optimizer against its paper, in numpy float64 -----------------------------

PAIR = {"w": ("embed", "mlp"), "b": ("norm",)}


def pair(seed, shape=(6, 9)):
  rng = np.random.default_rng(seed)
  return {"w": rng.standard_normal(shape), "b": rng.standard_normal(shape[1])}


def run(settings, n_steps, axes=PAIR, make_tree=pair, factors=CONSTANT):
  """Start, gradients of each step, and where the optimizer ends."""
  start = make_tree(0)
  grads = [make_tree(i + 1) for i in range(n_steps)]
  optimizer = make(settings, axes, factors)
  params = jax.tree.map(jnp.float32, start)
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  for grad in grads:
    updates, state = update(jax.tree.map(jnp.float32, grad), state, params)
    params = optax.apply_updates(params, updates)
  return start, grads, params, state


def fold(start, grads, step):
  """Runs `step(p, g, memory, t) -> (p, memory)` on each leaf in float64."""

  def leaf(name):
    p, memory = start[name], {}
    for t, grad in enumerate(grads, 1):
      p, memory = step(name, p, grad[name], memory, t)
    return p

  return {name: leaf(name) for name in start}


def assert_close(actual, expected, rtol=2e-6):
  for name in expected:
    np.testing.assert_allclose(
      actual[name], expected[name], rtol=rtol, atol=rtol, err_msg=name
    )


def adam(g, memory, t, b1, b2, eps):
  m = b1 * memory.get("m", 0) + (1 - b1) * g
  v = b2 * memory.get("v", 0) + (1 - b2) * g**2
  step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
  return step, {"m": m, "v": v}


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(nesterov):
  settings = config("sgd", momentum=0.9, nesterov=nesterov, clip=None)
  start, grads, params, _ = run(settings, 3)

  def step(name, p, g, memory, t):
    m = 0.9 * memory.get("m", 0) + g
    return p - 0.01 * (g + 0.9 * m if nesterov else m), {"m": m}

  assert_close(params, fold(start, grads, step))


def test_adamw_with_clipping_and_schedule():
  settings = config("adamw", lr=0.1, weight_decay=0.2, clip=0.5)
  factors = schedule.Linear(warmup_steps=1)
  start, grads, params, _ = run(settings, 3, factors=factors)
  factor = [1 / 2, 1, 97 / 98]

  def step(name, p, g, memory, t):
    norm = np.sqrt(sum((x**2).sum() for x in grads[t - 1].values()))
    update, memory = adam(g * 0.5 / norm, memory, t, 0.9, 0.95, 1e-8)
    decay = 0.2 if name == "w" else 0.0
    return p - 0.1 * factor[t - 1] * (update + decay * p), memory

  assert_close(params, fold(start, grads, step))


def test_lamb():
  settings = config("lamb", weight_decay=0.3, clip=None)
  start, grads, params, _ = run(settings, 2)

  def step(name, p, g, memory, t):
    update, memory = adam(g, memory, t, 0.9, 0.999, 1e-6)
    update += (0.3 if name == "w" else 0.0) * p
    ratio = np.linalg.norm(p) / np.linalg.norm(update)
    return p - 0.01 * ratio * update, memory

  assert_close(params, fold(start, grads, step))


def test_lion():
  settings = config("lion", weight_decay=0.3, clip=None)
  start, grads, params, _ = run(settings, 3)

  def step(name, p, g, memory, t):
    m = memory.get("m", np.zeros_like(g))
    update = np.sign(0.9 * m + 0.1 * g) + (0.3 if name == "w" else 0.0) * p
    return p - 0.01 * update, {"m": 0.99 * m + 0.01 * g}

  assert_close(params, fold(start, grads, step))


def test_adafactor():
  settings = config("adafactor", weight_decay=0.3, clip=None)
  start, grads, params, _ = run(settings, 3)

  def step(name, p, g, memory, t):
    fresh = t**-0.8
    v = (1 - fresh) * memory.get("v", 0) + fresh * g**2
    v_hat = v  # rows and columns are linear in v: factor it at the end
    if name == "w":
      v_hat = np.outer(v.mean(1), v.mean(0)) / v.mean()
    update = g / np.sqrt(v_hat)
    update /= max(1, np.sqrt((update**2).mean()))
    update *= max(1e-3, np.sqrt((p**2).mean()))
    return p - 0.01 * (update + (0.3 if name == "w" else 0) * p), {"v": v}

  assert_close(params, fold(start, grads, step))


def test_adafactor_keeps_rows_and_columns_of_the_folded_matrix():
  optimizer = make(config("adafactor"))
  factored = optimizer.init(normal(0))[1][0]
  assert factored.row["layers"]["q"].shape == (2, 16, 1, 1)
  assert factored.column["layers"]["q"].shape == (2, 1, 2, 8)
  assert factored.row["embed"]["table"].shape == (32, 1)


def newton_schulz(x, n_iterations=5):
  """The polynomial of Muon's post, on the shorter side first."""
  if x.shape[0] > x.shape[1]:
    return newton_schulz(x.T, n_iterations).T
  x = x / np.linalg.norm(x)
  for _ in range(n_iterations):
    gram = x @ x.T
    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
  return x


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon(nesterov):
  settings = config("muon", nesterov=nesterov, clip=None)
  start, grads, params, _ = run(settings, 3)

  def step(name, p, g, memory, t):
    if name == "b":
      update, memory = adam(g, memory, t, 0.9, 0.95, 1e-8)
      return p - 0.01 * update, memory
    m = 0.95 * memory.get("m", 0) + 0.05 * g
    if nesterov:  # bias-corrected, as in optax
      along = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
    else:
      along = m
    update = 0.2 * np.sqrt(9) * newton_schulz(along)
    return p - 0.01 * (update + 0.1 * p), {"m": m}

  assert_close(params, fold(start, grads, step), rtol=2e-5)


def test_muon_steps_are_nearly_orthogonal_in_the_folded_matrix():
  """Singular values within 1 +- 0.35 of those of an orthogonal matrix."""
  optimizer = make(config("muon", lr=1.0, weight_decay=0.0, clip=None))
  params, grads = normal(0), normal(1)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  for name, shape in (("q", (16, 16)), ("o", (16, 16)), ("up", (16, 24))):
    for layer in updates["layers"][name]:
      matrix = np.asarray(layer).reshape(shape) / (0.2 * max(shape) ** 0.5)
      values = np.linalg.svd(matrix, compute_uv=False)
      assert values.max() < 1.35
      assert np.median(values) > 0.65
  # The others take AdamW's first step: the sign of the gradient.
  for x, g in ((updates["norm"], grads["norm"]),):
    np.testing.assert_allclose(x, -np.sign(g), rtol=1e-4)
  table = updates["embed"]["table"]
  np.testing.assert_allclose(
    table, -np.sign(grads["embed"]["table"]), rtol=1e-3
  )


def test_schedule_free():
  settings = config("schedule_free", weight_decay=0.2, clip=None)
  factors = schedule.Constant(warmup_steps=1)
  start, grads, params, state = run(settings, 4, factors=factors)
  lrs = [0.005, 0.01, 0.01, 0.01]

  def step(name, p, g, memory, t):
    z, x = memory.get("z", p), memory.get("x", p)
    v = 0.999 * memory.get("v", 0) + 0.001 * g**2
    update = g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    update += (0.2 if name == "w" else 0.0) * p
    z = z - lrs[t - 1] * update
    share = lrs[t - 1] ** 2 / sum(lr**2 for lr in lrs[:t])
    x = (1 - share) * x + share * z
    average[name] = x
    return 0.9 * x + 0.1 * z, {"z": z, "x": x, "v": v}

  average = {}
  expected = fold(start, grads, step)
  assert_close(params, expected, rtol=5e-6)
  assert_close(optim.eval_params(state, params), average, rtol=5e-6)


def rosenbrock(params):
  x, y = params["x"]
  return 100 * (y - x**2) ** 2 + (1 - x) ** 2


def test_lbfgs_solves_rosenbrock():
  optimizer = make(config("lbfgs"), {"x": ("norm",)})
  start = {"x": jnp.array([-1.2, 1.0])}
  params, _ = descend(optimizer, start, 40, loss=rosenbrock)
  np.testing.assert_allclose(params["x"], [1.0, 1.0], atol=1e-3)


# Averages ----------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_ema_is_the_weighted_mean_of_what_was_reached(decay):
  optimizer = make(config("sgd", ema=decay, clip=None), PAIR)
  params = jax.tree.map(jnp.float32, pair(0))
  state = optimizer.init(params)
  assert_close(optim.eval_params(state, params), params, rtol=0)
  reached = []
  for t in range(1, 4):
    grads = jax.tree.map(jnp.float32, pair(t))
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    reached.append(params)
  weights = decay ** np.arange(2.0, -1.0, -1.0)
  expected = {
    name: sum(
      w * np.float64(p[name]) for w, p in zip(weights, reached, strict=True)
    )
    / weights.sum()
    for name in params
  }
  assert_close(optim.eval_params(state, params), expected, rtol=1e-6)


def test_ema_does_not_change_the_training():
  _, _, plain, _ = run(config("adamw"), 3)
  _, _, averaged, _ = run(config("adamw", ema=0.9), 3)
  chex.assert_trees_all_equal(plain, averaged)


def test_without_average_the_parameters_are_evaluated():
  optimizer = make(config("adamw"))
  params = normal(0)
  assert optim.eval_params(optimizer.init(params), params) is params


# Settings ----------------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "fields", "field"),
  [
    ("adamw", {"lr": 0.0}, "lr"),
    ("adamw", {"b1": 1.0}, "b1"),
    ("lion", {"b2": -0.1}, "b2"),
    ("sgd", {"nesterov": True}, "nesterov"),
    ("sgd", {"momentum": 1.0}, "momentum"),
    ("sgd", {"no_decay": ("b",)}, "no_decay"),
    ("lamb", {"weight_decay": -1.0}, "weight_decay"),
    ("muon", {"clip": 0.0}, "clip"),
    ("adafactor", {"ema": 1.0}, "ema"),
    ("schedule_free", {"b1": 0.0}, "b1"),
    ("lbfgs", {"n_pairs": 0}, "n_pairs"),
  ],
)
def test_impossible_values_are_named(name, fields, field):
  with pytest.raises(ValueError, match=f"{field}="):
    config(name, **fields)


@pytest.mark.parametrize(
  ("name", "field"),
  [
    ("sgd", "b1"),
    ("lion", "eps"),
    ("schedule_free", "ema"),
    ("lbfgs", "lr"),
    ("lbfgs", "clip"),
  ],
)
def test_a_setting_that_would_be_ignored_does_not_exist(name, field):
  with pytest.raises(TypeError, match=f"'{field}'"):
    config(name, **{field: 0.5})
