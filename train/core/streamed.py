"""An optimizer whose state of stacked layers lives in the host's memory.

ZeRO-Offload: arXiv 2101.06840. A step fetches the state of one layer after the
other, moves it on, and sends it back: the device never holds more than a few
layers of it. For optimizers that look at each weight alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import traverse_util
from jax import numpy as jnp
from jaxtyping import Array, Bool

from models import leaves
from models.leaves import Axes

KIND = "pinned_host"
STACK = "layers"  # what a stack of layers is called, among parameters and dims
Path = tuple[str, ...]


class Hosted(NamedTuple):
  """State that lives there, a tree for each stack; bad steps never reach it."""

  stacks: tuple[Any, ...]


class State(NamedTuple):
  """Of the stacks, and of all other leaves."""

  hosted: Hosted
  here: optax.OptState


def stream(
  make: Callable[[Axes], optax.GradientTransformation], axes: Axes
) -> optax.GradientTransformationExtraArgs:
  """The same optimizer, with the state of stacked layers in host memory.

  Args:
    make: builds the optimizer for a tree of names.
    axes: tree of names.
  """
  named_stacks, named_rest = _split(axes)
  one_layer = {
    path: make(leaves.map(lambda names: names[1:], part))
    for path, part in named_stacks.items()
  }
  rest = make(named_rest)

  def init(params):
    stacks, here = _split(params)
    hosted = tuple(
      make(named_stacks[path]).init(part) for path, part in stacks.items()
    )
    return State(Hosted(hosted), rest.init(here))

  def update(updates, state, params=None, *, is_good=True, **extra):
    del params, extra
    stacks, here = _split(updates)
    steps, hosted = {}, []
    for (path, part), kept in zip(
      stacks.items(), state.hosted.stacks, strict=True
    ):
      steps[path], moved = _through(one_layer[path], part, kept, is_good)
      hosted.append(moved)
    here, rest_state = rest.update(here, state.here)
    return _join(steps, here), State(Hosted(tuple(hosted)), rest_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _through(
  optimizer: optax.GradientTransformation,
  updates: Any,
  state: Any,
  is_good: Bool[Array, ""] | bool,
) -> tuple[Any, Any]:
  """Layer by layer; numbers that all layers share stay on the device."""
  flat, treedef = jax.tree.flatten(state)
  is_shared = [x.ndim == 0 for x in flat]

  def whole(shared, slices):
    numbers, arrays = iter(shared), iter(slices)
    return treedef.unflatten(
      [next(numbers if alone else arrays) for alone in is_shared]
    )

  def parts(tree):
    found = treedef.flatten_up_to(tree)
    return [
      [x for x, alone in zip(found, is_shared, strict=True) if alone == wanted]
      for wanted in (True, False)
    ]

  shared, hosted = parts(state)

  def one(carry, i):
    _, updates, hosted = carry
    old = [jax.device_put(_at(x, i), jax.memory.Space.Device) for x in hosted]
    step = jax.tree.map(lambda x: _at(x, i), updates)
    step, new = optimizer.update(step, whole(shared, old))
    numbers, arrays = parts(new)
    kept = [jnp.where(is_good, n, o) for n, o in zip(arrays, old, strict=True)]
    sent = [jax.device_put(x, jax.memory.Space.Host) for x in kept]
    # Each in the place of what it follows: nothing is held twice.
    hosted = [_put(x, i, s) for x, s in zip(hosted, sent, strict=True)]
    updates = jax.tree.map(lambda x, s: _put(x, i, s), updates, step)
    return (numbers, updates, hosted), None

  n_layers = len(hosted[0])
  (numbers, steps, hosted), _ = jax.lax.scan(
    one, (shared, updates, hosted), jnp.arange(n_layers)
  )
  numbers = [
    jnp.where(is_good, n, o) for n, o in zip(numbers, shared, strict=True)
  ]
  return steps, whole(numbers, hosted)


def _at(x: Array, i: Array) -> Array:
  return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(x: Array, i: Array, layer: Array) -> Array:
  return jax.lax.dynamic_update_index_in_dim(x, layer, i, 0)


def place(state: Any, shardings: Any) -> Any:
  """Shardings of an optimizer's state, with what is hosted moved to the host.

  Args:
    state: shapes of the state.
    shardings: a tree like it, all on the devices.
  """

  def hosted(node):
    return isinstance(node, Hosted)

  def move(node, places):
    if not hosted(node):
      return places
    return jax.tree.map(
      lambda x, s: s.with_memory_kind(KIND) if x.ndim else s, node, places
    )

  return jax.tree.map(move, state, shardings, is_leaf=hosted)


def chosen(is_good: Bool[Array, ""], new: Any, old: Any) -> Any:
  """The new tree where the step is good, else the old one.

  What is hosted has been chosen already, layer by layer.
  """

  def hosted(node):
    return isinstance(node, Hosted)

  def choose(new, old):
    return new if hosted(new) else jnp.where(is_good, new, old)

  return jax.tree.map(choose, new, old, is_leaf=hosted)


def _split(tree: Any) -> tuple[dict[Path, Any], Any]:
  """Stacks by the path that leads to them, each with its whole paths, by which
  its state is placed; and the rest of the tree.
  """
  stacks: dict[Path, dict[Path, Any]] = {}
  rest = {}
  for path, leaf in traverse_util.flatten_dict(tree).items():
    if STACK in path:
      at = path.index(STACK) + 1
      stacks.setdefault(path[:at], {})[path] = leaf
    else:
      rest[path] = leaf
  unflatten = traverse_util.unflatten_dict
  return {n: unflatten(p) for n, p in stacks.items()}, unflatten(rest)


def _join(stacks: dict[Path, Any], rest: Any) -> Any:
  flat = traverse_util.flatten_dict(rest)
  for tree in stacks.values():
    flat |= traverse_util.flatten_dict(tree)
  return traverse_util.unflatten_dict(flat)
