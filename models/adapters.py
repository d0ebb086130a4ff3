"""Adapters: a few trained leaves beside a frozen base, whatever the family.

An adapter is a transformation of the tree of parameters: at some paths it puts
a typed weight (models/weights.py), which holds the base's leaf and its own. Its
own leaves are a tree of dicts: stack/layers/block_0/attention/q/a, and so on.
Prompts and prefixes (models/prefix.py) lie beside the parameters instead. Heads
that know labels are trained whole, and are the adapter's: heads/texts/w/whole.

LoRA: arXiv 2106.09685.  Scaled by sqrt(R): 2312.03732.  DoRA: 2402.09353.
PiSSA: 2404.02948.  LoRA+: 2402.12354.  IA3: 2205.05638.  QLoRA: 2305.14314.
"""

import dataclasses
import fnmatch
import functools
import math
from typing import Any, Literal

import jax
from flax import traverse_util
from jax import numpy as jnp
from jaxtyping import Array

from configs import fields
from configs.ranges import Count, Fraction, Positive
from models import blockwise, families, leaves, prefix, weights
from models.leaves import Names
from models.prefix import Prefix, Prompt
from models.weights import LoraArray, ScaledArray, Weight

Own = dict[str, Any]  # the leaves that an adapter has at one path, by name
WHOLE = "whole"  # the one leaf of a path that is trained whole
_HEADS = "heads"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
  """Where the base lies, and in which form it is held while nothing changes it."""

  path: str  # a checkpoint, or a run, whose newest it is then
  # Of what is held: matrices alone are in blocks, all else is float32 then.
  weights: Literal["float32", "bfloat16", "int8", "int4", "nf4"] = "float32"
  double: bool = False  # whether the scales of blocks are quantized too

  def __post_init__(self):
    fields.check(self)
    if self.double and not self.in_blocks:
      raise ValueError(
        f"double=True quantizes the scales of blocks, and weights="
        f"{self.weights} has none: give nf4, int4 or int8, or leave it out."
      )

  @property
  def in_blocks(self) -> bool:
    """Whether the matrices are in blocks."""
    return self.weights in ("int8", "int4", "nf4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
  """w + alpha / rank * a @ b at every path; defaults of the paper."""

  # Patterns of paths, "*" for any characters.
  paths: tuple[str, ...] = ("*/attention/q", "*/attention/v")
  rank: Count = 8
  alpha: Positive = 16.0
  dropout: Fraction = 0.0  # of what a reads, in training
  stabilized: bool = False  # alpha / sqrt(rank)
  decomposed: bool = False  # DoRA: the length of each output is trained apart
  # pissa: a @ b begins as the largest singular values of the weight.
  init: Literal["zeros", "pissa"] = "zeros"
  # LoRA+: the lr of the factor that begins as zeros over that of the other.
  b_speed: Positive = 1.0

  def __post_init__(self):
    fields.check(self)
    if self.init == "pissa" and self.decomposed:
      raise ValueError(
        "init=pissa with decomposed=True: the one changes what the other "
        "measures. Leave one of them out."
      )

  def axes(self, names: Names, path: str) -> tuple[dict[str, Names], ...]:
    """Names of what is trained and of what is kept, at one path.

    Raises:
      ValueError: a weight that cannot be adapted so.
    """
    stacked, inputs, outputs = _sides(names, path)
    ab = {"a": (*stacked, *inputs, "rank"), "b": (*stacked, "rank", *outputs)}
    if self.init == "pissa":
      return ab, {f"{name}0": dims for name, dims in ab.items()}
    if not self.decomposed:
      return ab, {}
    if not leaves.is_matrix(names):
      raise ValueError(
        f"adapter.decomposed=True: {path} is a table, whose rows have no "
        "outputs. Leave it out of adapter.paths."
      )
    return {**ab, "magnitude": (*stacked, *outputs)}, {}

  def begin(
    self, w: Array, names: Names, path: str, key: Array
  ) -> tuple[Own, Own]:
    """What is trained and what is kept at one path of one layer, to begin with.

    As in peft: the one factor uniform within 1 / sqrt(inputs), the other 0.
    """
    del path
    n_in = len(leaves.sides(names)[0])
    inputs, outputs = w.shape[:n_in], w.shape[n_in:]
    shapes = (*inputs, self.rank), (self.rank, *outputs)
    if self.init == "pissa":
      matrix = w.reshape(math.prod(inputs), -1)
      u, s, v = jnp.linalg.svd(matrix, full_matrices=False)
      root = jnp.sqrt(s[: self.rank] / self._strength)
      a = (u[:, : self.rank] * root[None]).reshape(shapes[0])
      b = (root[:, None] * v[: self.rank]).reshape(shapes[1])
      return {"a": a, "b": b}, {"a0": a, "b0": b}
    # Of a table a row is looked up, or it is a head, whose rows are outputs.
    is_table = not leaves.is_matrix(names)
    width = math.prod(outputs if is_table else inputs) ** -0.5
    drawn = jax.random.uniform(
      key, shapes[is_table], jnp.float32, -width, width
    )
    zeros = jnp.zeros(shapes[not is_table], jnp.float32)
    a, b = (zeros, drawn) if is_table else (drawn, zeros)
    own = {"a": a, "b": b}
    if self.decomposed:
      square = jnp.square(w).sum(tuple(range(n_in)))
      own["magnitude"] = jnp.sqrt(square)
    return own, {}

  def wrap(
    self, base: Weight, own: Own, names: Names, path: str, key: Array | None
  ) -> Weight:
    """The typed weight; a key drops out."""
    del path
    a, b, alpha = own["a"], own["b"], self._strength * self.rank
    if "a0" in own:  # what it began with is taken away again, by a rank as high
      a = jnp.concatenate([a, own["a0"]], -1)
      rank_dim = 1 if names[0] == "layers" else 0
      b = jnp.concatenate([b, -own["b0"]], rank_dim)
      alpha *= 2
    if key is not None and self.dropout:
      n_layers = a.shape[:1] if names[0] == "layers" else ()
      key = jax.random.key_data(jax.random.split(key, n_layers or (1,)))
      key = key if n_layers else key[0]
    else:
      key = None
    return LoraArray(base, a, b, alpha, own.get("magnitude"), key, self.dropout)

  def speed(self, name: str, names: Names) -> float:
    """What the lr of a leaf is multiplied by."""
    begins_at_0 = "b" if leaves.is_matrix(names) else "a"
    return self.b_speed if name == begins_at_0 else 1.0

  @property
  def _strength(self) -> float:
    return self.alpha / (self.rank**0.5 if self.stabilized else self.rank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IA3:
  """A factor for each output, or for each input; paths of the paper."""

  paths: tuple[str, ...] = ("*/attention/k", "*/attention/v")
  reading: tuple[str, ...] = ("*/mlp/down",)  # whose inputs have the factors

  def __post_init__(self):
    fields.check(self)

  def axes(self, names: Names, path: str) -> tuple[dict[str, Names], ...]:
    """As Lora's."""
    stacked, inputs, outputs = _sides(names, path)
    if not leaves.is_matrix(names):
      raise ValueError(
        f"adapter.paths: {path} is a table, and IA3 scales what a matrix reads "
        "or gives. Leave it out."
      )
    side = inputs if self.reads(path) else outputs
    return {"scale": (*stacked, *side)}, {}

  def begin(
    self, w: Array, names: Names, path: str, key: Array
  ) -> tuple[Own, Own]:
    """As Lora's: ones."""
    del key
    n_in = len(leaves.sides(names)[0])
    side = w.shape[:n_in] if self.reads(path) else w.shape[n_in:]
    return {"scale": jnp.ones(side)}, {}

  def wrap(
    self, base: Weight, own: Own, names: Names, path: str, key: Array | None
  ) -> Weight:
    """As Lora's; nothing drops out."""
    del names, key
    return ScaledArray(base, own["scale"], self.reads(path))

  def speed(self, name: str, names: Names) -> float:
    """As Lora's."""
    del name, names
    return 1.0

  def reads(self, path: str) -> bool:
    """Whether the factors are of the inputs."""
    return any(fnmatch.fnmatchcase(path, p) for p in self.reading)


Config = Lora | IA3 | Prompt | Prefix
CONFIGS = fields.Choice(
  {"lora": Lora, "ia3": IA3, "prompt": Prompt, "prefix": Prefix}, default="lora"
)


def chosen(config: Config, axes: Any) -> list[str]:
  """The paths that an adapter changes, in order.

  Raises:
    ValueError: a pattern that matches nothing.
  """
  patterns = config.paths + getattr(config, "reading", ())
  return sorted(leaves.matched(axes, patterns, "adapter.paths"))


def own_axes(config: Config, model: families.Config) -> tuple[Any, Any]:
  """Names of the dims of what an adapter trains and of what it keeps.

  Args:
    config: one of CONFIGS.
    model: that it adapts.

  Raises:
    ValueError: a path, or a model, that cannot be adapted so.
  """
  axes, shapes = families.axes(model), families.abstract(model)
  if isinstance(config, Prompt | Prefix):
    key = jax.eval_shape(jax.random.key, 0)
    begun = jax.eval_shape(functools.partial(config.begin, model), shapes, key)
    return {prefix.NAME: {n: (None,) * x.ndim for n, x in begun.items()}}, {}
  flat = traverse_util.flatten_dict(axes, sep="/")
  found = {
    p: config.axes(flat[p], p) for p in chosen(config, beneath(model, axes))
  }
  return _two_trees({**found, **_whole(model, axes)})


def begin(
  config: Config, model: families.Config, base: Any, key: Array
) -> tuple[Any, Any]:
  """What an adapter trains and what it keeps, to begin with.

  Args:
    config: one of CONFIGS.
    model: that it adapts.
    base: its parameters, as they are held.
    key: what is drawn depends on it and on the number of the path.
  """
  if isinstance(config, Prompt | Prefix):
    return {prefix.NAME: config.begin(model, base, key)}, {}
  axes = families.axes(model)
  names = traverse_util.flatten_dict(axes, sep="/")
  held = traverse_util.flatten_dict(base, sep="/")
  found = {}
  for i, path in enumerate(chosen(config, beneath(model, axes))):
    of = names[path]
    own = jax.random.fold_in(key, i)
    w = blockwise.stacked(of, weights.dense)(held[path])
    if of[0] == "layers":
      own, of = jax.random.split(own, w.shape[0]), of[1:]
      one = functools.partial(_one, config, of, path)
      found[path] = jax.vmap(one)(w, own)
    else:
      found[path] = _one(config, of, path, w, own)
  return _two_trees({**found, **_whole(model, base)})


def own(config: Config, model: families.Config) -> tuple[Any, Any]:
  """Shapes and names of the dims of all leaves of an adapter.

  Args:
    config: one of CONFIGS.
    model: that it adapts.
  """
  key, shapes = jax.eval_shape(jax.random.key, 0), families.abstract(model)
  begun = jax.eval_shape(functools.partial(begin, config, model), shapes, key)
  return leaves.join(*begun), leaves.join(*own_axes(config, model))


def join(
  config: Config,
  model: families.Config,
  own: Any,
  base: Any,
  key: Array | None,
) -> Any:
  """The parameters of the model with the adapter in its places.

  Args:
    config: one of CONFIGS.
    model: that it adapts.
    own: all leaves of the adapter.
    base: the model's parameters; they may hold other adapters already.
    key: of dropout; None: nothing drops out.
  """
  if isinstance(config, Prompt | Prefix):
    return {**base, prefix.NAME: config.made(model, own[prefix.NAME])}
  axes = families.axes(model)
  names = traverse_util.flatten_dict(axes, sep="/")
  flat = traverse_util.flatten_dict(base, sep="/")
  mine: dict[str, Own] = {}
  for path, leaf in traverse_util.flatten_dict(own, sep="/").items():
    place, _, name = path.rpartition("/")
    mine.setdefault(place, {})[name] = leaf
  for i, (path, leaf) in enumerate(sorted(mine.items())):
    each = None if key is None else jax.random.fold_in(key, i)
    if WHOLE in leaf:
      flat[path] = leaf[WHOLE]
    else:
      flat[path] = config.wrap(flat[path], leaf, names[path], path, each)
  return traverse_util.unflatten_dict(flat, sep="/")


def merge(axes: Any, params: Any) -> Any:
  """The same parameters as arrays, fp32: adapters added, blocks multiplied out."""
  return leaves.map(
    lambda names, w: blockwise.stacked(names, weights.dense)(w), axes, params
  )


def beneath(model: families.Config, tree: dict[str, Any]) -> dict[str, Any]:
  """Of parameters, or of a tree like them, what a base holds for an adapter."""
  own = (_HEADS,) if families.answers(model) else ()
  return {name: part for name, part in tree.items() if name not in own}


def hold(base: Base, axes: Any, params: Any) -> Any:
  """Parameters in the form in which a frozen base is held."""

  def one(names, w):
    if base.in_blocks and _is_in_blocks(names):
      made = functools.partial(
        blockwise.quantize, kind=base.weights, double=base.double
      )
      return blockwise.stacked(names, made)(w)
    return w.astype(jnp.bfloat16) if base.weights == "bfloat16" else w

  return leaves.map(one, axes, params)


def held_axes(base: Base, axes: Any) -> Any:
  """Names of the dims of what `hold` makes of a model's parameters."""
  if not base.in_blocks:
    return axes
  return leaves.map(
    lambda names: (
      blockwise.axes(names, base.weights, base.double)
      if _is_in_blocks(names)
      else names
    ),
    axes,
  )


def speeds(config: Config, model: families.Config) -> Any:
  """What the lr of each trained leaf is multiplied by; None: all by 1."""
  if isinstance(config, Prompt | Prefix):
    return None
  axes = families.axes(model)
  trained, _ = own_axes(config, model)
  names = traverse_util.flatten_dict(axes, sep="/")
  flat = traverse_util.flatten_dict(trained, sep="/")
  found = {
    path: 1.0 if name == WHOLE else config.speed(name, names[place])
    for path in flat
    for place, _, name in [path.rpartition("/")]
  }
  return traverse_util.unflatten_dict(found, sep="/")


def _whole(model: families.Config, tree: Any) -> dict[str, tuple[Own, Own]]:
  """What of a tree is trained whole, at each path."""
  if not families.answers(model):
    return {}
  flat = traverse_util.flatten_dict({_HEADS: tree[_HEADS]}, sep="/")
  return {path: ({WHOLE: x}, {}) for path, x in flat.items()}


def _is_in_blocks(names: Names) -> bool:
  return leaves.is_matrix(names) and "experts" not in names


def _one(config, names, path, w, key):
  return config.begin(w, names, path, key)


def _two_trees(found: dict[str, tuple[Own, Own]]) -> tuple[Any, Any]:
  return tuple(
    traverse_util.unflatten_dict(
      {
        f"{path}/{n}": x
        for path, own in found.items()
        for n, x in own[i].items()
      },
      sep="/",
    )
    for i in (0, 1)
  )


def _sides(names: Names, path: str) -> tuple[Names, Names, Names]:
  """Names of the layers, of the inputs and of the outputs of a weight."""
  if "experts" in names:
    raise ValueError(
      f"adapter.paths: {path} lists experts, whose adapters are not there yet. "
      "Leave it out."
    )
  inputs, outputs = leaves.sides(names)
  if not outputs:
    raise ValueError(
      f"adapter.paths: {path} is a vector, and has no inputs and outputs. Leave "
      "it out."
    )
  n_stacked = len(names) - len(leaves.weight_dims(names))
  return (
    names[:n_stacked],
    tuple(names[i] for i in inputs),
    tuple(names[i] for i in outputs),
  )
