"""Any objective in stages: what comes before, in and behind the layers.

An objective calls the model, and the model its stack of layers. Cut there, it
is a program for a pipeline: neither the objective nor the model knows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array

from data.batch import Batch
from models import families
from models.layers import stack
from sharding import pipeline, rules
from sharding.pipeline import Timetable
from sharding.rules import Layout
from train.core import step
from train.core.step import Objective

_TOLD = ("losses", "figures")  # what layers tell of themselves


def make(
  objective: Objective,
  model: families.Config,
  layout: Layout,
  n_parts: int | None = None,
  config: pipeline.Config | None = None,
) -> Objective:
  """The same objective, whose batches pass through the stages in parts.

  A stage keeps the inputs of its layers and computes the rest again, once more
  than `model.remat` alone would: with stages, "none" is full rematerialization.

  It is what one device gets from the sum of the objective over the parts. Only
  parameters have a gradient, and only that of the loss; what a layer sees
  beside the residual stream comes from the batch alone.

  Args:
    objective: calls one stack of scanned layers, once.
    model: whose layers they are.
    layout: with one stage, the objective stays as it is.
    n_parts: how many; None: one row of each shard is a part.
    config: in what order.

  Raises:
    ValueError: these layers cannot be cut so, or not for these devices.
  """
  if layout.n_stages == 1:
    return objective
  _check(model, layout)
  config = config or pipeline.Config()
  cut = Cut.of(model, layout.n_stages * config.n_repeats)
  program = _program(objective, model, cut, _placing(model, layout, "grads"))
  place = _placing(model, layout, "params")

  def in_stages(params: Any, batch: Batch, key: Array | None):
    n_rows = batch.tokens.shape[0] // layout.n_batch_shards
    table = Timetable(layout.n_stages, n_parts or n_rows, config)
    keys = None
    if key is not None:
      fold = jax.vmap(jax.random.fold_in, (None, 0))
      keys = fold(key, jnp.arange(table.n_parts))
    chunks = cut.chunks(params["stack"]["layers"], layout.n_stages)
    chunks, rest = place((chunks, {**params, "stack": {}}))
    loss, (weight, metrics) = pipeline.run(
      table, program, chunks, rest, (step.split(batch, table.n_parts), keys)
    )
    return loss, weight, metrics

  return in_stages


def _check(model: families.Config, layout: Layout) -> None:
  experts = getattr(model, "experts", None)
  with layout.use():
    on_tpu = rules.platform() == "tpu"
  # Of libtpu 0.0.42: "Failed to create RaggedConvSpec".
  if on_tpu and experts and experts.capacity_factor is None:
    raise ValueError(
      f"mesh.stage={layout.n_stages} with model.experts.capacity_factor=None: "
      "compilers of TPUs take no dropless experts in stages. Give a capacity, "
      "1.25 or so, or mesh.stage=1."
    )


def describe(
  model: families.Config,
  layout: Layout,
  n_parts: int,
  config: pipeline.Config | None,
) -> str:
  """For the run's line: the stages, and how much of their time is lost."""
  if layout.n_stages == 1:
    return ""
  config = config or pipeline.Config()
  table = Timetable(layout.n_stages, n_parts, config)
  n_chunks = layout.n_stages * config.n_repeats
  n_blocks = [n * len(model.pattern) for n in Cut.of(model, n_chunks).sizes]
  uneven = ""
  if len({*n_blocks}) > 1:
    uneven = ": uneven, the longest sets the pace, and no stage stores its own"
  return (
    f"; {n_parts} parts through {layout.n_stages} stages by {config.schedule}, "
    f"bubble {table.bubble:.1%}, layers "
    f"{' + '.join(map(str, n_blocks))}{uneven}"
  )


@dataclasses.dataclass(frozen=True)
class Cut:
  """Layers in chunks: as even as can be, the longer ones first."""

  n_layers: int  # repetitions of the pattern
  n_chunks: int

  @classmethod
  def of(cls, model: families.Config, n_chunks: int) -> "Cut":
    """The cut of a model.

    Raises:
      ValueError: there is no one stack to cut, there are more chunks than
        layers to put in, or the last repetition of the pattern is cut short.
    """
    params = families.abstract(model)
    if "layers" not in params.get("stack", {}):
      raise ValueError(
        "mesh.stage cuts one stack of scanned layers, and "
        f"{families.name(model)} has {', '.join(params)}: give mesh.stage=1."
      )
    if model.n_layers % len(model.pattern):
      raise ValueError(
        f"n_layers={model.n_layers} is not a multiple of the "
        f"{len(model.pattern)} layers of the pattern, whose repetitions stages "
        "share: give mesh.stage=1."
      )
    n_layers = len(jax.tree.leaves(params["stack"]["layers"])[0])
    if n_layers < n_chunks:
      raise ValueError(
        f"{n_layers} layers (repetitions of the pattern) do not fill {n_chunks} "
        "chunks, mesh.stage x mesh.pipeline.n_repeats: lower one of them."
      )
    return cls(n_layers, n_chunks)

  @property
  def sizes(self) -> list[int]:
    """Layers of each chunk."""
    n, rest = divmod(self.n_layers, self.n_chunks)
    return [n + (i < rest) for i in range(self.n_chunks)]

  @property
  def live(self) -> np.ndarray:
    """[chunks, places]: False where a chunk is shorter than the longest."""
    return np.arange(max(self.sizes))[None] < np.array(self.sizes)[:, None]

  def chunks(self, layers: Any, n_stages: int) -> Any:
    """[L, ...] -> [S, N, places, ...]; chunk r S + s is the r-th of stage s."""
    starts = np.cumsum([0, *self.sizes[:-1]])
    places = starts[:, None] + np.arange(max(self.sizes))[None]
    places = np.minimum(places, self.n_layers - 1)  # not live: any layer

    def arrange(x):
      if not self.live.all():
        x = x[places.reshape(-1)]
        live = self.live.reshape(-1, *(1,) * (x.ndim - 1))
        x = jnp.where(live, x, jax.lax.stop_gradient(x))
      shape = -1, n_stages, places.shape[1], *x.shape[1:]
      return x.reshape(shape).swapaxes(0, 1)

    return jax.tree.map(arrange, layers)


class _Reached(Exception):  # noqa: N818
  """The objective came to its layers: what it would have called them with."""

  def __init__(self, layers: stack.Stack, x: Any, side: stack.Side):
    super().__init__()
    self.layers, self.x, self.side = layers, x, side


def _at_layers(objective: Objective, function: Callable, *args) -> Any:
  """Runs objective(*args) with function(module, x, side) for `stack`."""

  def intercept(call, inputs, options, context):
    # Others run where they stand: the first layers of DeepSeek, and its last.
    if context.module.path != ("stack",):
      return call(*inputs, **options)
    return function(context.module, *inputs)

  with nn.intercept_methods(intercept):
    return objective(*args)


def _before(objective: Objective, *args) -> _Reached:
  """Runs objective(*args) until it comes to its layers."""

  def stop(layers, x, side, cache=None):
    del cache
    layers = layers.clone(parent=None, name=None)
    raise _Reached(layers, x, side)

  try:
    _at_layers(objective, stop, *args)
  except _Reached as reached:
    return reached
  raise TypeError("the objective calls no layers: it cannot be cut in stages.")


def _program(
  objective: Objective,
  model: families.Config,
  cut: Cut,
  place: Callable[[Any], Any],
) -> pipeline.Program:
  n_places = max(cut.sizes)

  def first(rest, part):
    reached = _before(objective, rest, *part)
    one = reached.layers.clone(n_layers=len(model.pattern))
    key = jax.random.key(0)
    _, told = jax.eval_shape(
      lambda: one.init_with_output(
        {"params": key, "dropout": key}, reached.x, reached.side
      )
    )
    zeros = jax.tree.map(lambda x: jnp.zeros((), x.dtype), _told(told))
    return reached.x, zeros

  def stage(rest, chunk, state, part, number):
    x, told = state
    _, key = part
    reached = _before(objective, rest, *part)
    live = jnp.asarray(cut.live)[number]
    layers = reached.layers.clone(n_layers=n_places * len(model.pattern))
    (x, _), more = layers.apply(
      {"params": {"layers": chunk}},
      x,
      reached.side,
      live=None if cut.live.all() else live,
      # What comes before the layers has the key itself.
      rngs=key if key is None else {"dropout": jax.random.fold_in(key, number)},
      mutable=_TOLD,
    )
    add = lambda a, b: a + jnp.where(live, b, 0).sum()  # noqa: E731
    return x, jax.tree.map(add, told, _told(more))

  def last(rest, state, part):
    x, told = state

    def reply(layers, *_):
      for name, tree in told.items():
        if layers.is_mutable_collection(name):
          layers.put_variable(name, "layers", tree["layers"])
      return x, None

    loss, *more = _at_layers(objective, reply, rest, *part)
    return loss, tuple(more)

  return pipeline.Program(first, stage, last, place)


def _told(variables: Any) -> dict[str, Any]:
  return {name: variables[name] for name in _TOLD if name in variables}


def _placing(
  model: families.Config, layout: Layout, kind: str
) -> Callable[[Any], Any]:
  """Puts (chunks, rest) where the rules for a kind say."""
  axes = families.axes(model)
  of_chunks = jax.tree.map(
    lambda names: ("stages", None, None, *names[1:]),
    axes["stack"]["layers"],
    is_leaf=lambda x: isinstance(x, tuple),
  )

  def place(trees):
    names = [of_chunks, {**axes, "stack": {}}]
    placed = layout.shardings(names, list(trees), kind)
    specs = jax.tree.map(lambda s: s.spec, tuple(placed))
    return jax.lax.with_sharding_constraint(trees, specs)

  return place
