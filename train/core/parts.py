"""What of a model gradients train, and what stays as it was.

The step, the optimizer, the guard and the average see the trained part alone;
an objective takes the two, joined. Both are trees of dicts, pruned: a leaf is
in one of them.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import flax.struct
import jax

from configs import door
from models import adapters, base, families, leaves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(base.Config):
  """The base, and which of its parameters are trained."""

  # Patterns of paths, "*" for any characters; None: all are.
  trained: tuple[str, ...] | None = None


# Unchecked: as a pytree it also carries shapes, shardings and names.
@typing.no_type_check
@flax.struct.dataclass
class Frozen:
  """No gradient reaches it, and no step changes it."""

  kept: Any  # written into every checkpoint, beside what is trained
  base: Any  # read again from the base, which the checkpoint names


def only_trained(params: Any, frozen: Any, key: Any) -> Any:
  """The parameters where all are trained."""
  del frozen, key
  return params


@dataclasses.dataclass(frozen=True)
class Parts:
  """The two parts of a model's parameters.

  Attributes:
    shapes: of the trained part; and below of the frozen one.
    axes: a tuple of logical names for each leaf.
    frozen_shapes: a Frozen, or {} where all is trained.
    frozen_axes: a tree like it.
    split: (parameters as the base has them, key) to (trained, frozen).
    join: (trained, frozen, key or None) to what objectives and evaluators
      take; a key drops out.
    speeds: what the lr of each trained leaf is multiplied by; None: by 1.
  """

  shapes: Any
  axes: Any
  frozen_shapes: Any
  frozen_axes: Any
  split: Callable[[Any, Any], tuple[Any, Any]]
  join: Callable[[Any, Any, Any], Any]
  speeds: Any = None


def of(model: Parts | families.Config) -> Parts:
  """All of a model, trained; Parts stay what they are."""
  if isinstance(model, Parts):
    return model
  shapes, axes = families.abstract(model), families.axes(model)
  return Parts(
    shapes, axes, {}, {}, lambda params, key: (params, {}), only_trained
  )


def make(config: door.Config) -> Parts:
  """The parts that a config asks for, by `adapter` or by `base.trained`.

  Raises:
    ValueError: a pattern that matches nothing, or nothing that is left to
      train.
  """
  if "adapter" in config.sections:
    return adapted(config.model, config.base, config.adapter)
  trained = getattr(config.sections.get("base"), "trained", None)
  return of(config.model) if trained is None else by_path(config.model, trained)


def by_path(model: families.Config, patterns: tuple[str, ...]) -> Parts:
  """Trains the paths that a pattern matches, and nothing else.

  Raises:
    ValueError: a pattern that matches nothing.
  """
  shapes, axes = families.abstract(model), families.axes(model)
  chosen = leaves.matched(axes, patterns, "base.trained")

  def split(params, key=None):
    del key
    trained, kept = leaves.part(params, chosen)
    return trained, Frozen(kept, {})

  def join(params, frozen, key):
    del key
    return leaves.join(params, frozen.kept)

  trained_axes, frozen_axes = split(axes)
  trained, frozen = split(shapes)
  return Parts(trained, trained_axes, frozen, frozen_axes, split, join)


def adapted(
  model: families.Config, base: adapters.Base, adapter: adapters.Config
) -> Parts:
  """Trains an adapter; the base is held as its config says.

  Raises:
    ValueError: a path that cannot be adapted so.
  """
  axes = adapters.beneath(model, families.axes(model))
  trained_axes, kept_axes = adapters.own_axes(adapter, model)

  def split(params, key):
    held = adapters.hold(base, axes, adapters.beneath(model, params))
    trained, kept = adapters.begin(adapter, model, {**params, **held}, key)
    return trained, Frozen(kept, held)

  def join(params, frozen, key):
    own = leaves.join(params, frozen.kept)
    return adapters.join(adapter, model, own, frozen.base, key)

  key = jax.eval_shape(jax.random.key, 0)
  trained, frozen = jax.eval_shape(split, families.abstract(model), key)
  return Parts(
    trained,
    trained_axes,
    frozen,
    Frozen(kept_axes, adapters.held_axes(base, axes)),
    split,
    join,
    adapters.speeds(adapter, model),
  )


def published(params: Any, frozen: Any) -> Any:
  """What params/ of a checkpoint holds."""
  return leaves.join(params, frozen.kept) if frozen else params
