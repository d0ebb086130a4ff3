"""Optimizers: one dataclass each, all made of the same four parts.

    clip by the global norm -> direction -> decoupled weight decay -> -lr * factor

`direction` is what tells one optimizer from another. Everything is computed and
kept in fp32, whatever the parameters are.

Weight decay is decoupled for all, p -= lr * weight_decay * p as in AdamW
(1711.05101); for SGD too, where torch adds it to the gradient.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from train.core import ema, leaves, per_layer

Axes = Any  # a tree like the parameters, of tuples of logical names


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Descent:
  """What all optimizers share that step along a direction."""

  lr: float  # at the peak of the schedule
  weight_decay: float = 0.0  # per unit of lr
  # Patterns of paths that are not decayed; None: all that is no matrix.
  no_decay: tuple[str, ...] | None = None
  clip: float | None = 1.0  # largest global norm of the gradient; GPT-3

  def __post_init__(self):
    _check(self, "lr", self.lr > 0, "above 0")
    _check(self, "weight_decay", self.weight_decay >= 0, "0 or more")
    _check(self, "clip", self.clip is None or self.clip > 0, "above 0, or None")
    _check(
      self,
      "no_decay",
      self.no_decay is None or self.weight_decay > 0,
      "left out where weight_decay is 0: nothing is decayed",
    )
    for name in ("b1", "b2", "momentum"):
      value = getattr(self, name, 0.0)
      _check(self, name, 0 <= value < 1, "in [0, 1)")

  def direction(
    self, axes: Axes, decay: optax.GradientTransformation
  ) -> optax.GradientTransformation:
    """Gradients to steps, upwards, with the decay where it belongs."""
    raise NotImplementedError

  def build(
    self, schedule: optax.Schedule, axes: Axes
  ) -> optax.GradientTransformation:
    """All four parts, for fp32 parameters."""
    mask = _decay_mask(axes, self.no_decay)
    decay = optax.add_decayed_weights(self.weight_decay, mask)
    return optax.chain(
      optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
      self.direction(axes, decay),
      optax.scale_by_learning_rate(lambda count: self.lr * schedule(count)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Averaged(_Descent):
  """Offers an average of the parameters for evaluation."""

  ema: float | None = None  # share kept at each step, such as 0.999

  def __post_init__(self):
    super().__post_init__()
    fits = self.ema is None or 0 < self.ema < 1
    _check(self, "ema", fits, "in (0, 1), or None")

  def build(
    self, schedule: optax.Schedule, axes: Axes
  ) -> optax.GradientTransformation:
    """See _Descent."""
    step = super().build(schedule, axes)
    return step if self.ema is None else optax.chain(step, ema.track(self.ema))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(_Averaged):
  """Gradient descent with momentum as in torch: buffer = m * buffer + g."""

  momentum: float = 0.0
  nesterov: bool = False

  def __post_init__(self):
    super().__post_init__()
    fits = self.momentum > 0 or not self.nesterov
    _check(self, "nesterov", fits, "left out where momentum is 0")

  def direction(self, axes, decay):
    """See _Descent."""
    if not self.momentum:
      return decay
    return optax.chain(optax.trace(self.momentum, self.nesterov), decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(_Averaged):
  """1711.05101; defaults as in GPT-3 and Llama."""

  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1

  def direction(self, axes, decay):
    """See _Descent."""
    return optax.chain(optax.scale_by_adam(self.b1, self.b2, self.eps), decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LAMB(_Averaged):
  """1904.00962: Adam, each weight's step as long as lr times the weight."""

  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-6
  weight_decay: float = 0.01

  def direction(self, axes, decay):
    """See _Descent; the decay is part of what is made as long."""
    return optax.chain(
      optax.scale_by_adam(self.b1, self.b2, self.eps),
      decay,
      per_layer.scale_by_trust_ratio(axes),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(_Averaged):
  """2302.06675; lr 3 to 10 times smaller than AdamW's, decay as much larger."""

  b1: float = 0.9
  b2: float = 0.99
  weight_decay: float = 1.0

  def direction(self, axes, decay):
    """See _Descent."""
    return optax.chain(optax.scale_by_lion(self.b1, self.b2), decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(_Averaged):
  """1804.04235: rows and columns of second moments, relative steps.

  Every weight with inputs and outputs is factored, tables too, whatever its
  size; no first moment.
  """

  decay_power: float = 0.8  # step t weighs t ** -decay_power
  clip_rms: float = 1.0  # largest rms of a step relative to its weight
  min_rms: float = 1e-3  # smaller weights move as if they were this large

  def direction(self, axes, decay):
    """See _Descent."""
    scale = per_layer.scale_by_factored_rms(
      axes, self.decay_power, self.clip_rms, self.min_rms
    )
    return optax.chain(scale, decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(_Averaged):
  """Orthogonalized momentum for matrices, AdamW for everything else.

  Which dims make a matrix is read from their names (leaves.sides) and handed to
  optax as dimension numbers: heads are folded, and layers and experts are a
  batch. Steps have the rms of AdamW's (2502.16982), so that lr and weight_decay
  are those of AdamW for both kinds.
  """

  momentum: float = 0.95
  nesterov: bool = True
  n_iterations: int = 5  # of Newton-Schulz
  rms: float = 0.2  # of a matrix's step
  b1: float = 0.9  # of AdamW
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1

  def direction(self, axes, decay):
    """See _Descent."""
    dims = jax.tree.map(_muon_dims, axes, is_leaf=leaves.is_names)
    kinds = jax.tree.map(
      lambda names: "matrix" if leaves.is_matrix(names) else "other",
      axes,
      is_leaf=leaves.is_names,
    )
    matrix = optax.chain(
      optax.contrib.scale_by_muon(
        ns_steps=self.n_iterations,
        beta=self.momentum,
        nesterov=self.nesterov,
        weight_dimension_numbers=dims,
      ),
      per_layer.scale_orthogonal(axes, self.rms),
    )
    other = optax.scale_by_adam(self.b1, self.b2, self.eps)
    parts = {"matrix": matrix, "other": other}
    return optax.chain(optax.partition(parts, kinds), decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleFree(_Descent):
  """AdamW that averages instead of decaying its lr: 2405.15682.

  Meant for a constant schedule with warm-up; eval_params gives the average.
  """

  b1: float = 0.9  # of the interpolation; above 0
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    _check(self, "b1", self.b1 > 0, "above 0: the average is divided by it")

  def direction(self, axes, decay):
    """See _Descent."""
    scale = optax.scale_by_rms(
      self.b2, self.eps, eps_in_sqrt=False, bias_correction=True
    )
    return optax.chain(scale, decay)

  def build(
    self, schedule: optax.Schedule, axes: Axes
  ) -> optax.GradientTransformation:
    """See _Descent."""
    return optax.contrib.schedule_free(
      super().build(schedule, axes),
      # optax counts from 1 here.
      learning_rate=lambda count: self.lr * schedule(count - 1),
      b1=self.b1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LBFGS:
  """L-BFGS with a zoom line search, for fits on the full batch.

  The line search finds the length of each step; the schedule's factor is its
  first guess. Keeps 2 * n_pairs copies of the parameters.
  """

  n_pairs: int = 10  # steps remembered
  search_steps: int = 20  # at most, each a value and a gradient

  def __post_init__(self):
    for name in ("n_pairs", "search_steps"):
      _check(self, name, getattr(self, name) >= 1, "at least 1")

  def build(
    self, schedule: optax.Schedule, axes: Axes
  ) -> optax.GradientTransformation:
    """Needs value, grad and value_fn as extra arguments of update."""
    del axes
    search = optax.scale_by_zoom_linesearch(
      self.search_steps, initial_guess_strategy="one"
    )
    return optax.lbfgs(schedule, self.n_pairs, linesearch=search)


Config = SGD | AdamW | LAMB | Lion | Adafactor | Muon | ScheduleFree | LBFGS
CONFIGS: dict[str, type] = {
  "sgd": SGD,
  "adamw": AdamW,
  "lamb": LAMB,
  "lion": Lion,
  "adafactor": Adafactor,
  "muon": Muon,
  "schedule_free": ScheduleFree,
  "lbfgs": LBFGS,
}


def make(
  config: Config, schedule: optax.Schedule, axes: Axes
) -> optax.GradientTransformationExtraArgs:
  """Builds an optimizer.

  L-BFGS calls the objective itself; the others ignore what it needs, so that
  one call fits all:

      optimizer.update(
        grads, opt_state, params, value=loss, grad=grads, value_fn=loss_of
      )

  with `loss_of(params) -> loss` the mean over the same batch, of which `loss`
  and `grads` are the value and the gradient at `params`.

  Args:
    config: one of CONFIGS.
    schedule: step -> factor of the peak lr.
    axes: a tree like the parameters, of tuples of logical names.

  Raises:
    ValueError: a pattern of no_decay that matches no parameter.
  """
  return _in_float32(config.build(schedule, axes))


def eval_params(opt_state: optax.OptState, params: optax.Params) -> Any:
  """The parameters to evaluate and publish: the average, where one is kept."""
  kinds = (ema.EmaState, optax.contrib.ScheduleFreeState)
  found = [
    node
    for node in jax.tree.leaves(opt_state, is_leaf=lambda x: _is(x, kinds))
    if _is(node, kinds)
  ]
  if not found:
    return params
  (state,) = found
  if _is(state, ema.EmaState):
    mean = state.mean
  else:
    mean = optax.contrib.schedule_free_eval_params(state, params)
  return jax.tree.map(lambda m, p: m.astype(p.dtype), mean, params)


def shardings(
  optimizer: optax.GradientTransformation, params: Any, placed: Any
) -> Any:
  """Places the optimizer state like the parameters that its leaves mirror.

  A dim that the state reduced to size 1 (Adafactor) is whole, and so is one
  that it put in front (L-BFGS); what mirrors no parameter is on every device.

  Args:
    optimizer: what `make` returned.
    params: parameters, or their shapes.
    placed: a tree like params of the shardings that their state shall have.

  Returns:
    A tree of shardings like `optimizer.init(params)`.
  """
  state = jax.eval_shape(optimizer.init, params)
  shapes = jax.tree.leaves_with_path(params)
  mirrored = {
    path: (leaf.shape, sharding)
    for (path, leaf), sharding in zip(
      shapes, jax.tree.leaves(placed), strict=True
    )
  }
  mesh = jax.tree.leaves(placed)[0].mesh

  def place(path, leaf):
    # State trees hold the parameters' tree: its path ends with theirs.
    ends = (path[start:] for start in range(len(path)))
    end = next((end for end in ends if end in mirrored), None)
    if end is None:
      return NamedSharding(mesh, P())
    shape, sharding = mirrored[end]
    n_front = leaf.ndim - len(shape)
    spec = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
    kept = (
      split if size == leaf.shape[n_front + dim] else None
      for dim, (size, split) in enumerate(zip(shape, spec, strict=True))
    )
    return sharding.update(spec=P(*(None,) * n_front, *kept))

  return jax.tree.map_with_path(place, state)


def _in_float32(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  inner = optax.with_extra_args_support(inner)

  def cast(tree):
    return optax.tree.cast(tree, jnp.float32)

  def update(updates, state, params, **extra):
    if "grad" in extra:
      extra["grad"] = cast(extra["grad"])
    return inner.update(cast(updates), state, cast(params), **extra)

  return optax.GradientTransformationExtraArgs(
    lambda params: inner.init(cast(params)), update
  )


def _decay_mask(axes: Axes, no_decay: tuple[str, ...] | None) -> Any:
  treedef = jax.tree.structure(axes, is_leaf=leaves.is_names)
  return treedef.unflatten(leaves.decayed(axes, no_decay).values())


def _muon_dims(names: leaves.Names) -> Any:
  if not leaves.is_matrix(names):
    return optax.MaskedNode()
  return optax.contrib.MuonDimensionNumbers(*leaves.sides(names))


def _is(node: Any, kinds: Any) -> bool:
  return isinstance(node, kinds)


def _check(config: Any, name: str, fits: bool, allowed: str) -> None:
  if not fits:
    raise ValueError(
      f"optim.{name}={getattr(config, name)!r} must be {allowed}."
    )
