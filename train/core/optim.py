"""Optimizers: one dataclass each, all made of the same four parts.

    clip by the global norm -> direction -> decoupled weight decay -> -lr * factor

`direction` is what tells one optimizer from another. Everything is computed and
kept in fp32, whatever the parameters are.

Weight decay is decoupled for all, p -= lr * weight_decay * p as in AdamW
(1711.05101); for SGD too, where torch adds it to the gradient.
"""

import dataclasses
import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import fields
from configs.ranges import (
  Count,
  Epsilon,
  Fraction,
  NonNegative,
  Positive,
  Share,
)
from models import leaves
from models.leaves import Axes
from train.core import (
  balance,
  ema,
  moments,
  per_layer,
  streamed,
  width,
)

_Moments = moments.Kind  # a field hides the module


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Descent:
  """What all have in common that step along a direction."""

  lr: Positive  # at the peak of the schedule
  weight_decay: NonNegative = 0.0  # per unit of lr
  # Patterns of paths that are not decayed; None: all that is no matrix.
  no_decay: tuple[str, ...] | None = None
  clip: Positive | None = 1.0  # largest global norm of the gradient; GPT-3
  # What routers' biases move by at a step; None: 0.001, where there are any.
  bias_speed: NonNegative | None = None
  mup_width = None  # a setting only of those that it is right for

  def __post_init__(self):
    fields.check(self)
    if self.no_decay is not None and self.weight_decay == 0:
      raise ValueError(
        f"no_decay={self.no_decay} changes nothing at weight_decay=0: leave "
        "it out."
      )
    if self.lr * self.weight_decay >= 1:
      raise ValueError(
        f"lr={self.lr} times weight_decay={self.weight_decay} is the share of "
        "each weight that a step takes away: it must stay below 1."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Averaged(_Descent):
  # Share of the average kept at a step, as 0.999.
  ema: Annotated[float, "(0, 1)"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entrywise(_Descent):
  """What those have in common that divide each entry by its size, as Adam."""

  # d_model that lr and init were tuned at (width.py); None: no scaling.
  mup_width: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(_Averaged):
  """Gradient descent with momentum as in torch: buffer = m * buffer + g."""

  momentum: Fraction = 0.0
  nesterov: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.nesterov and self.momentum == 0:
      raise ValueError("nesterov=True changes nothing at momentum=0.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(_Averaged, _Entrywise):
  """1711.05101; defaults of GPT-3 and Llama."""

  b1: Fraction = 0.9
  b2: Fraction = 0.95
  eps: Epsilon = 1e-8
  weight_decay: NonNegative = 0.1
  moments: _Moments = "float32"  # between steps; vectors' are always so
  # Moments of the layers live in the host's memory, and come one by one.
  streamed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LAMB(_Averaged):
  """1904.00962: Adam, each weight's step as long as lr times the weight."""

  b1: Fraction = 0.9
  b2: Fraction = 0.999
  eps: Epsilon = 1e-6
  weight_decay: NonNegative = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(_Averaged, _Entrywise):
  """2302.06675; lr 3 to 10 times smaller than AdamW's, decay as much larger."""

  b1: Fraction = 0.9
  b2: Fraction = 0.99
  weight_decay: NonNegative = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(_Averaged):
  """1804.04235: rows and columns of second moments, steps relative to weights.

  Factors all weights with inputs and outputs, tables too, whatever their size;
  keeps no first moment.
  """

  decay_power: Share = 0.8  # step t weighs t ** -decay_power
  clip_rms: Positive = 1.0  # largest rms of a step relative to its weight
  min_rms: Positive = 1e-3  # smaller weights move as if they were this large


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(_Averaged):
  """Orthogonalized momentum for matrices, AdamW for everything else.

  Which dims make a matrix is read from their names (leaves.sides) and handed to
  optax as dimension numbers: heads are folded, layers and experts are a batch.
  Steps have the rms of AdamW's (2502.16982), so that one lr and one
  weight_decay serve both kinds. Nesterov's first steps are corrected for bias,
  as in optax; torch does not.
  """

  momentum: Fraction = 0.95
  nesterov: bool = True
  n_iterations: Annotated[int, "[1, 100]"] = 5  # of Newton-Schulz
  rms: Positive = 0.2  # of a matrix's step
  b1: Fraction = 0.9  # of AdamW
  b2: Fraction = 0.95
  eps: Epsilon = 1e-8
  weight_decay: NonNegative = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleFree(_Entrywise):
  """AdamW that averages instead of lowering its lr: 2405.15682.

  Meant for a constant schedule with warm-up.
  """

  # Of the interpolation; the average is divided by it.
  b1: Annotated[float, "(0, 1)"] = 0.9
  b2: Fraction = 0.999
  eps: Epsilon = 1e-8
  weight_decay: NonNegative = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LBFGS:
  """L-BFGS with a zoom line search, for fits on the full batch.

  The search finds how far to step; the schedule's factor is its first guess.
  The state is 2 * n_pairs + 3 times as large as the parameters.
  """

  n_pairs: Annotated[int, "[1, 1000]"] = 10  # steps remembered
  search_steps: Count = 20  # at most, each one value and gradient
  mup_width = None

  def __post_init__(self):
    fields.check(self)


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
  config: Config, schedule: optax.Schedule, axes: Axes, speeds: Any = None
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
    speeds: what the lr of each is multiplied by; None: 1.

  Raises:
    ValueError: a pattern of no_decay that matches no parameter; a bias_speed of
      nothing.
  """
  trained, biases = leaves.split(axes, axes)
  if isinstance(config, LBFGS):
    if biases:
      raise ValueError(
        "optim.name='lbfgs' follows gradients alone, and the routers of this "
        "model have biases: set model.experts.biased=False."
      )
    search = optax.scale_by_zoom_linesearch(
      config.search_steps, initial_guess_strategy="one"
    )
    lbfgs = optax.lbfgs(schedule, config.n_pairs, linesearch=search)

    def update(*args, is_good=True, **extra):
      del is_good  # nothing of it is kept elsewhere
      return lbfgs.update(*args, **extra)

    return _in_float32(
      optax.GradientTransformationExtraArgs(lbfgs.init, update)
    )

  def lr(count):
    return config.lr * schedule(count)

  clip = optax.identity()
  if config.clip is not None:
    clip = optax.clip_by_global_norm(config.clip)
  step = optax.chain(
    clip, _direction(config, trained), optax.scale_by_learning_rate(lr)
  )
  if speeds is not None:
    of_each = optax.stateless(
      lambda steps, _: jax.tree.map(jnp.multiply, steps, speeds)
    )
    step = optax.chain(step, of_each)
  if isinstance(config, ScheduleFree):
    # optax counts from 1 here.
    step = optax.contrib.schedule_free(step, lambda i: lr(i - 1), config.b1)
  elif config.ema is not None:
    step = optax.chain(step, ema.track(config.ema))
  speed = config.bias_speed
  if biases:
    speed = balance.SPEED if speed is None else speed
    step = balance.beside(step, axes, speed)
  elif speed is not None:
    raise ValueError(
      f"optim.bias_speed={speed} moves nothing: no router of this model has a "
      "bias. Leave it out, or set model.experts.biased=True."
    )
  return _in_float32(step)


def listing(config: Config, axes: Axes) -> str:
  """Which parameters the weight decay shrinks, a line each."""
  if not getattr(config, "weight_decay", 0.0):
    return "no parameter is decayed\n"
  trained, _ = leaves.split(axes, axes)
  decayed = leaves.decayed(trained, config.no_decay)
  return "".join(
    f"{'decayed' if is_decayed else '-':<9}{path}\n"
    for path, is_decayed in decayed.items()
  )


def _direction(config: Config, axes: Axes) -> optax.GradientTransformation:
  """Gradients to steps, still uphill, with the weight decay added."""
  c = config
  decay = optax.add_decayed_weights(
    c.weight_decay, _decay_mask(axes, c.no_decay)
  )
  if c.mup_width is not None:
    decay = optax.chain(width.scale_by_width(axes, c.mup_width), decay)
  match c:
    case SGD(momentum=0.0):
      return decay
    case SGD():
      return optax.chain(optax.trace(c.momentum, c.nesterov), decay)
    case AdamW():

      def adam(axes):
        if c.moments == "float32":
          return optax.scale_by_adam(c.b1, c.b2, c.eps)
        return moments.scale_by_adam(axes, c.b1, c.b2, c.eps, c.moments)

      moved = streamed.stream(adam, axes) if c.streamed else adam(axes)
      return optax.chain(moved, decay)
    case LAMB():  # the decay is part of what gets the weight's norm
      adam = optax.scale_by_adam(c.b1, c.b2, c.eps)
      return optax.chain(adam, decay, per_layer.scale_by_trust_ratio(axes))
    case Lion():
      return optax.chain(optax.scale_by_lion(c.b1, c.b2), decay)
    case Adafactor():
      factored = per_layer.scale_by_factored_rms(
        axes, c.decay_power, c.clip_rms, c.min_rms
      )
      return optax.chain(factored, decay)
    case Muon():
      return optax.chain(_muon(c, axes), decay)
    case ScheduleFree():  # AdamW without a first moment
      rms = optax.scale_by_rms(
        c.b2, c.eps, eps_in_sqrt=False, bias_correction=True
      )
      return optax.chain(rms, decay)


def _muon(config: Muon, axes: Axes) -> optax.GradientTransformation:
  def dims(names):
    if not leaves.is_matrix(names):
      return optax.MaskedNode()
    return optax.contrib.MuonDimensionNumbers(*leaves.sides(names))

  def kind(names):
    return "matrix" if leaves.is_matrix(names) else "other"

  matrix = optax.chain(
    optax.contrib.scale_by_muon(
      ns_steps=config.n_iterations,
      beta=config.momentum,
      nesterov=config.nesterov,
      weight_dimension_numbers=leaves.map(dims, axes),
    ),
    per_layer.scale_orthogonal(axes, config.rms),
  )
  other = optax.scale_by_adam(config.b1, config.b2, config.eps)
  return optax.partition(
    {"matrix": matrix, "other": other}, leaves.map(kind, axes)
  )


def eval_params(opt_state: optax.OptState, params: optax.Params) -> Any:
  """The parameters to evaluate and publish: the average, where one is kept."""
  state = _average(opt_state)
  if state is None:
    return params
  if isinstance(state, ema.EmaState):
    mean = state.mean
  else:
    trained = leaves.like(state.z, params)
    mean = optax.contrib.schedule_free_eval_params(state, trained)
  mean = leaves.join(params, mean)  # routers' biases have none
  return jax.tree.map(lambda m, p: m.astype(p.dtype), mean, params)


def is_averaged(opt_state: optax.OptState) -> bool:
  """Whether the published parameters differ from the ones being trained."""
  return _average(opt_state) is not None


def _average(opt_state: optax.OptState) -> Any:
  def averages(node):
    return isinstance(node, ema.EmaState | optax.contrib.ScheduleFreeState)

  nodes = jax.tree.leaves(opt_state, is_leaf=averages)
  return next(filter(averages, nodes), None)


def shardings(
  optimizer: optax.GradientTransformation, params: Any, placed: Any
) -> Any:
  """Places the optimizer state like the parameters that its leaves mirror.

  A dim that the state reduced (Adafactor: to 1; scales of blocks) is split as
  long as that divides it; one that it put in front (L-BFGS) is whole. What
  mirrors no parameter is on every device.

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
    sizes = leaf.shape[n_front:]
    kept = (
      None if split is None or size % _n_shards(mesh, split) else split
      for size, split in zip(sizes, spec, strict=True)
    )
    return sharding.update(spec=P(*(None,) * n_front, *kept))

  return streamed.place(state, jax.tree.map_with_path(place, state))


def _n_shards(mesh: Any, split: str | tuple[str, ...]) -> int:
  axes = (split,) if isinstance(split, str) else split
  return math.prod(mesh.shape[axis] for axis in axes)


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
