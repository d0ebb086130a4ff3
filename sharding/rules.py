"""Logical axis name -> mesh axes, in named tables.

Every weight and every activation names its dimensions ("embed", "heads", ...);
a table says over which mesh axes each name is split. Parameters, gradients and
optimizer state may be split differently: that is all that ZeRO is.

ZeRO: arXiv 1910.02054.  Tensor parallelism: arXiv 1909.08053.
"""

import contextlib
import contextvars
import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Names = tuple[str | None, ...]  # one logical name per dimension
AnyMesh = Mesh | AbstractMesh  # of devices, or only of their numbers
Table = Mapping[str, tuple[str, ...]]  # () declares: not split

_WHOLE: Table = {
  "layers": (),  # the stacked dimension that the scan runs over
  "embed": (),
  "norm": (),  # vectors as wide as the model: scales and biases
  "heads": (),
  "kv_heads": (),
  "head": (),
  "mlp": (),
  "vocab": (),
  "position": (),
  "router": (),
  "balance": (),  # biases of routers, which the load moves
  "latent": (),  # what attention compresses to, and back from
  "latent_in": (),
  "embed_out": (),  # of a matrix from the width of the model to itself
  "experts": (),
  "expert_in": (),  # width of the model, in an expert's matrix
}
_ACTIVATIONS: Table = {
  "batch": ("replica", "data", "fsdp"),
  "length": (),
  "act_embed": (),
  "act_heads": (),
  "act_kv_heads": (),
  "act_mlp": (),
  "act_vocab": (),
  "lookup": (),  # width of the embedding table while rows are looked up
}
_FSDP: Table = {
  **_WHOLE,
  "embed": ("fsdp",),
  "latent_in": ("fsdp",),
  "expert_in": ("fsdp",),
}
# Rows are split over `expert` too: see sharding/expert.py.
_EXPERT: Table = {
  **_WHOLE,
  "embed": ("fsdp", "expert"),
  "latent_in": ("fsdp",),
  "experts": ("expert",),
  "expert_in": ("fsdp",),
}
_EXPERT_ROWS: Table = {"batch": ("replica", "data", "fsdp", "expert")}
_TENSOR_SPLIT: Table = {
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "mlp": ("tensor",),
  "vocab": ("tensor",),
}
_TENSOR_ACTIVATIONS: Table = {
  **_ACTIVATIONS,
  "act_heads": ("tensor",),
  "act_kv_heads": ("tensor",),
  "act_mlp": ("tensor",),
  "act_vocab": ("tensor",),
  "lookup": ("tensor",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Where each logical axis goes, for each kind of array."""

  params: Table
  grads: Table
  state: Table  # optimizer moments and averages
  activations: Table = dataclasses.field(default_factory=lambda: _ACTIVATIONS)


def _rules(table: Table, **kinds: Table) -> Rules:
  return Rules(**{"params": table, "grads": table, "state": table, **kinds})


TABLES: dict[str, Rules] = {
  "dp": _rules(_WHOLE),
  "zero1": _rules(_WHOLE, state=_FSDP),
  "zero2": _rules(_WHOLE, state=_FSDP, grads=_FSDP),
  "fsdp": _rules(_FSDP),
  "tensor": _rules(
    {**_WHOLE, **_TENSOR_SPLIT}, activations=_TENSOR_ACTIVATIONS
  ),
  "fsdp_tensor": _rules(
    {**_FSDP, **_TENSOR_SPLIT}, activations=_TENSOR_ACTIVATIONS
  ),
}
TABLES["expert"] = _rules(_EXPERT, activations={**_ACTIVATIONS, **_EXPERT_ROWS})
TABLES["expert_tensor"] = _rules(
  {**_EXPERT, **_TENSOR_SPLIT},
  activations={**_TENSOR_ACTIVATIONS, **_EXPERT_ROWS},
)
TABLES["zero3"] = TABLES["fsdp"]


def spec(
  names: Names, shape: tuple[int, ...], table: Table, mesh: AnyMesh
) -> P:
  """Turns the logical names of one array into its PartitionSpec.

  Raises:
    ValueError: a name without a rule, two dimensions on one mesh axis, or a
      size that its mesh axes do not divide.
  """
  if len(names) != len(shape):
    raise ValueError(f"names {names} do not fit the shape {shape}.")
  used: dict[str, str] = {}
  dims = []
  for name, size in zip(names, shape, strict=True):
    axes = () if name is None else _lookup(name, table)
    for axis in axes:
      if axis in used:
        raise ValueError(
          f"mesh axis {axis!r} is taken twice in {names}: by {used[axis]!r} "
          f"and by {name!r}; change one of the two rules."
        )
      used[axis] = str(name)
    n_shards = math.prod(mesh.shape[axis] for axis in axes)
    if size % n_shards:
      raise ValueError(
        f"{name!r} of size {size} in {names} {shape} is not divisible by "
        f"{' x '.join(f'{a}={mesh.shape[a]}' for a in axes)}: change the mesh "
        "or the size, or choose a table that leaves this dimension whole."
      )
    dims.append(axes if len(axes) > 1 else axes[0] if axes else None)
  return P(*dims)


def _lookup(name: str, table: Table) -> tuple[str, ...]:
  if name not in table:
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.0)
    raise ValueError(
      f"no rule for the logical axis {name!r}; did you mean {near[0]!r}? "
      f"Known: {', '.join(sorted(table))}."
    )
  return table[name]


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and its rules: all that is needed to place any array."""

  mesh: AnyMesh
  rules: Rules
  attention: str = "auto"  # the kernel that is asked for

  def sharding(
    self, names: Names, shape: tuple[int, ...], kind: str = "params"
  ) -> NamedSharding:
    """Sharding of one array of a kind: params, grads, state, activations."""
    table = getattr(self.rules, kind)
    return NamedSharding(self.mesh, spec(names, shape, table, self.mesh))

  def shardings(self, axes: Any, shapes: Any, kind: str = "params") -> Any:
    """A tree of names and a tree of shapes -> a tree of shardings.

    Raises:
      ValueError: as `spec`, with the path of the leaf.
    """

    def place(path, names, leaf):
      try:
        return self.sharding(names, leaf.shape, kind)
      except ValueError as error:
        raise ValueError(f"{jax.tree_util.keystr(path)}: {error}") from None

    return jax.tree_util.tree_map_with_path(
      place, axes, shapes, is_leaf=lambda x: isinstance(x, tuple)
    )

  @property
  def replicated(self) -> NamedSharding:
    """The sharding of scalars."""
    return NamedSharding(self.mesh, P())

  @property
  def batch(self) -> NamedSharding:
    """The sharding of [B, T] arrays."""
    table = self.rules.activations
    return NamedSharding(self.mesh, P(table["batch"], table["length"] or None))

  @property
  def n_batch_shards(self) -> int:
    """Into how many parts a batch is split."""
    axes = self.rules.activations["batch"]
    return math.prod(self.mesh.shape[axis] for axis in axes)

  @contextlib.contextmanager
  def use(self) -> Iterator[None]:
    """Within: `constrain` places activations on this mesh by these rules."""
    token = _CURRENT.set(self)
    try:
      with jax.set_mesh(self.mesh):
        yield
    finally:
      _CURRENT.reset(token)


_CURRENT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar(
  "layout", default=None
)


def make(mesh: AnyMesh, name: str, attention: str = "auto") -> Layout:
  """Picks a table by name and checks that it uses the whole mesh.

  Raises:
    ValueError: no such table, or a mesh axis larger than one on which the
      table places nothing: its devices would repeat each other's work.
  """
  if name not in TABLES:
    near = difflib.get_close_matches(name, TABLES, n=1, cutoff=0.0)[0]
    raise ValueError(
      f"rules={name!r} is no table; did you mean {near!r}? "
      f"Known: {', '.join(TABLES)}."
    )
  rules = TABLES[name]
  tables = (rules.params, rules.state, rules.activations)
  used = {a for table in tables for axes in table.values() for a in axes}
  idle = [f"{a}={n}" for a, n in mesh.shape.items() if n > 1 and a not in used]
  if idle:
    fitting = [
      other
      for other, r in TABLES.items()
      if {a for a, n in mesh.shape.items() if n > 1}
      <= {x for t in (r.params, r.activations) for v in t.values() for x in v}
    ]
    raise ValueError(
      f"rules={name!r} place nothing on {', '.join(idle)}: those devices would "
      f"repeat the others' work. Tables that use this mesh: "
      f"{', '.join(fitting) or 'none'}."
    )
  return Layout(mesh, rules, attention)


def current() -> Layout | None:
  """The layout in use; None outside of `Layout.use`."""
  return _CURRENT.get()


def on_rows(
  function: Callable[..., Any],
  rows: Any,
  weights: Any,
  *,
  split: tuple[str, ...] = (),
  out_specs: Any,
) -> Any:
  """Runs function(rows, weights) on every shard of the batch.

  Args:
    function: sees the rows of its shard.
    rows: a tree of arrays [B, ...].
    weights: a tree of arrays that every shard sees whole, but for the mesh axes
      `split`, which split their first dimension.
    split: see there.
    out_specs: of what it returns, as for `jax.shard_map`.
  """
  layout = current()
  batch = layout.rules.activations["batch"]
  copied = tuple(axis for axis in batch if axis not in split)

  def on_shard(rows, weights):
    # A custom gradient varies over all shards, and so must what it is of.
    weights = jax.tree.map(
      lambda w: jax.lax.pcast(w, copied, to="varying"), weights
    )
    return function(rows, weights)

  return jax.shard_map(
    on_shard,
    mesh=layout.mesh,
    in_specs=(P(batch), P(split or None)),
    out_specs=out_specs,
    axis_names=set(batch),
  )(rows, weights)


def platform() -> str:
  """Of the devices that the layout is for, which need not be here: cpu, ..."""
  layout = current()
  devices = getattr(layout and layout.mesh, "devices", None)
  return jax.default_backend() if devices is None else devices.flat[0].platform


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Pins an activation to the current layout; does nothing without one.

  Raises:
    ValueError: as `spec`; with_sharding_constraint itself would silently
      replicate an indivisible dimension.
  """
  layout = current()
  if layout is None:
    return x
  sharding = layout.sharding(names, x.shape, "activations")
  # The spec alone: within `on_rows` the mesh is another, with fewer free axes.
  return jax.lax.with_sharding_constraint(x, sharding.spec)
