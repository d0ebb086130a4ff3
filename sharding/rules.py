"""Logical axis name -> mesh axes, in named tables.

Every weight and every activation names its dimensions ("embed", "heads", ...);
a table says over which mesh axes each name is split. Parameters, gradients and
optimizer state may be split differently: that is all that ZeRO is.

ZeRO: arXiv 1910.02054.  Tensor parallelism: arXiv 1909.08053.  Sequence
parallelism: 2205.05198.
"""

import contextlib
import contextvars
import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Names = tuple[str | None, ...]  # one logical name per dimension
AnyMesh = Mesh | AbstractMesh  # of devices, or only of their numbers
Table = Mapping[str, tuple[str, ...]]  # () declares: not split

_WHOLE: Table = {
  "layers": ("stage",),  # the stacked dimension that the scan runs over
  "stages": ("stage",),  # of layers that are cut into stages
  "embed": (),
  "norm": (),  # vectors as wide as the model: scales and biases
  "heads": (),
  "kv_heads": (),
  "head": (),
  "gates": (),  # matrices of a recurrent layer, side by side
  "mlp": (),
  "vocab": (),
  "position": (),
  "router": (),
  "balance": (),  # biases of routers, which the load moves
  "latent": (),  # what attention compresses to, and back from
  "latent_in": (),
  "embed_out": (),  # of a matrix from the width of the model to itself
  "labels": (),
  "rank": (),  # of adapters
  "experts": (),
  "expert_in": (),  # width of the model, in an expert's matrix
}
_ACTIVATIONS: Table = {
  "batch": ("replica", "data", "fsdp"),
  "length": ("context",),
  "stream": ("context",),  # the length, between layers and in norms
  "act_embed": (),
  "act_heads": (),
  "act_kv_heads": (),
  "act_mlp": (),
  "act_vocab": (),
  # While rows of the embedding table are looked up: its width, and the batch.
  "lookup": (),
  "lookup_batch": ("replica", "data", "fsdp"),
}
# Shards of a row share the work on it, so they share the states too.
_FSDP: Table = {
  **_WHOLE,
  "embed": ("fsdp", "context"),
  "expert_in": ("fsdp", "context"),
  "latent_in": ("fsdp", "context"),
}
# Rows are split over `expert` too: see sharding/expert.py.
_EXPERT: Table = {
  **_FSDP,
  "embed": ("fsdp", "expert", "context"),
  "experts": ("expert",),
}
_EXPERT_ROWS: Table = {"batch": ("replica", "data", "fsdp", "expert")}
# The table stays as it lies and the ids travel: tokens of a device are fewer
# than rows of a table, and so are the bytes of either's gradient.
_LOOKUP: Table = {"lookup": ("fsdp",), "lookup_batch": ("replica", "data")}
# Not over fsdp, too: of a large mesh each device would have a few columns for the
# tokens of all, and lanes are 128 wide (DeepSeek-V3 on 1024 v5p: 4 GiB more).
_EXPERT_LOOKUP: Table = {"lookup": ("expert",)}
_TENSOR_SPLIT: Table = {
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "mlp": ("tensor",),
  # Over stages too: of embedding and head nothing else would be split.
  "vocab": ("stage", "tensor"),
}
_TENSOR_ACTIVATIONS: Table = {
  **_ACTIVATIONS,
  # What heads and ffn add up over tensor is scattered along the length, and
  # gathered before the next ones: as much on the wire, a part of the memory.
  "stream": ("context", "tensor"),
  "act_heads": ("tensor",),
  "act_kv_heads": ("tensor",),
  "act_mlp": ("tensor",),
  "act_vocab": ("stage", "tensor"),
  "lookup": ("stage", "tensor"),
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
  "fsdp": _rules(_FSDP, activations={**_ACTIVATIONS, **_LOOKUP}),
  "tensor": _rules(
    {**_WHOLE, **_TENSOR_SPLIT}, activations=_TENSOR_ACTIVATIONS
  ),
  "fsdp_tensor": _rules(
    {**_FSDP, **_TENSOR_SPLIT}, activations={**_TENSOR_ACTIVATIONS, **_LOOKUP}
  ),
}
TABLES["expert"] = _rules(
  _EXPERT, activations={**_ACTIVATIONS, **_EXPERT_ROWS, **_EXPERT_LOOKUP}
)
TABLES["expert_tensor"] = _rules(
  {**_EXPERT, **_TENSOR_SPLIT},
  activations={
    **_TENSOR_ACTIVATIONS,
    **_EXPERT_ROWS,
    **_EXPERT_LOOKUP,
  },
)
TABLES["zero3"] = TABLES["fsdp"]


def spec(
  names: Names, shape: tuple[int, ...], table: Table, mesh: AnyMesh
) -> P:
  """Turns the logical names of one array into its PartitionSpec.

  Layers that the stages do not divide are stored whole, and the stages split
  the first other dimension that they can: no device stores them all.

  Raises:
    ValueError: a name without a rule, two dimensions on one mesh axis, or a
      size that its mesh axes do not divide.
  """
  if len(names) != len(shape):
    raise ValueError(f"names {names} do not fit the shape {shape}.")
  used: dict[str, str] = {}
  dims, moved = [], ()
  for name, size in zip(names, shape, strict=True):
    axes = () if name is None else _lookup(name, table)
    for axis in axes:
      if axis in used:
        raise ValueError(
          f"mesh axis {axis!r} is taken twice in {names}: by {used[axis]!r} "
          f"and by {name!r}; change one of the two rules."
        )
      used[axis] = str(name)
    if name == "layers" and size % _n_shards(axes, mesh):
      axes, moved = (), axes
    elif moved and not size % _n_shards((*axes, *moved), mesh):
      axes, moved = (*axes, *moved), ()
    if size % _n_shards(axes, mesh):
      raise ValueError(
        f"{name!r} of size {size} in {names} {shape} is not divisible by "
        f"{product(axes, mesh)}: change the mesh or the size, or choose a table "
        "that leaves this dimension whole."
      )
    dims.append(axes if len(axes) > 1 else axes[0] if axes else None)
  if moved:
    raise ValueError(
      f"neither 'layers' nor another dimension of {names} {shape} is divisible "
      f"by {_n_shards(moved, mesh)} stages: change mesh.stage."
    )
  return P(*dims)


def product(axes: tuple[str, ...], mesh: AnyMesh) -> str:
  """The axes larger than one, for people: `fsdp=2 x tensor=4`."""
  return " x ".join(f"{a}={mesh.shape[a]}" for a in axes if mesh.shape[a] > 1)


def _n_shards(axes: tuple[str, ...], mesh: AnyMesh) -> int:
  return math.prod(mesh.shape[axis] for axis in axes)


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
  exchange: str = "ring"  # how queries meet all keys: sharding/context.py
  order: str = "contiguous"  # of the columns on the shards of a row
  mapped: tuple[str, ...] = ()  # mesh axes of the vmaps around, see `mapped`

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
    return NamedSharding(self.mesh, self.rows)

  @property
  def rows(self) -> P:
    """The spec of [B, T] arrays."""
    table = self.rules.activations
    return P(table["batch"], table["length"])

  @property
  def token_axes(self) -> tuple[str, ...]:
    """The mesh axes that share the tokens of a batch."""
    table = self.rules.activations
    return table["batch"] + table["length"]

  @property
  def shares_no_tokens(self) -> bool:
    """Whether all tokens lie on one shard; XLA aborts at sums over it alone."""
    return not self.mapped and _n_shards(self.token_axes, self.mesh) == 1

  @property
  def n_batch_shards(self) -> int:
    """Into how many parts the rows of a batch are split."""
    axes = self.rules.activations["batch"]
    return _n_shards(axes, self.mesh)

  @property
  def n_stages(self) -> int:
    """Into how many stages the layers are cut."""
    return self.mesh.shape["stage"]

  def within(self, axis: str) -> "Layout":
    """What one part along an axis sees: nothing of it is split there."""

    def left(table):
      return {
        name: tuple(a for a in axes if a != axis)
        for name, axes in table.items()
      }

    kinds = vars(self.rules).items()
    rules = Rules(**{kind: left(table) for kind, table in kinds})
    return dataclasses.replace(self, rules=rules)

  @contextlib.contextmanager
  def use(self) -> Iterator[None]:
    """Within: `constrain` places activations on this mesh by these rules."""
    with self._named(), jax.set_mesh(self.mesh):
      yield

  @contextlib.contextmanager
  def _named(self) -> Iterator[None]:
    token = _CURRENT.set(self)
    try:
      yield
    finally:
      _CURRENT.reset(token)


_CURRENT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar(
  "layout", default=None
)


def make(mesh: AnyMesh, name: str, *settings: str) -> Layout:
  """Picks a table by name and checks that it uses the whole mesh.

  Args:
    mesh: of devices.
    name: of a table.
    settings: attention, exchange and order of the layout.

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
  return Layout(mesh, rules, *settings)


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
  """Runs function(rows, weights) on every shard of the batch's tokens.

  Args:
    function: sees the rows of its shard, or its part of them.
    rows: a tree of arrays [B, T, ...].
    weights: a tree of arrays that every shard sees whole, but for the mesh axes
      `split`, which split their first dimension.
    split: see there.
    out_specs: of what it returns, as for `jax.shard_map`.
  """
  layout = current()
  axes = layout.token_axes
  if layout.shares_no_tokens:
    return function(rows, weights)
  copied = tuple(axis for axis in axes if axis not in split)

  def vary(w):
    wide = w.astype(_summable(w.dtype))
    return jax.lax.pcast(wide, copied, to="varying").astype(w.dtype)

  def on_shard(rows, weights):
    # A custom gradient varies over all shards, and so must what it is of.
    return function(rows, jax.tree.map(vary, weights))

  return jax.shard_map(
    on_shard,
    in_specs=(layout.rows, P(split or None)),
    out_specs=out_specs,
    axis_names={*axes, *layout.mapped},
  )(rows, weights)


def _summable(dtype: jnp.dtype) -> jnp.dtype:
  """XLA:CPU aborts at a sum of bf16 over devices, and at its transpose."""
  return jnp.promote_types(dtype, jnp.float32) if platform() == "cpu" else dtype


def whole_rows() -> contextlib.AbstractContextManager[None]:
  """Within: activations are not split along the length, whatever the table says.

  Prompts are of any length, and a decoding step reads one token.
  """
  layout = current()
  if layout is None:
    return contextlib.nullcontext()
  table = {**layout.rules.activations, "length": (), "stream": ()}
  rules = dataclasses.replace(layout.rules, activations=table)
  return dataclasses.replace(layout, rules=rules)._named()


def mapped(function: Callable[..., Any], axis: str) -> Callable[..., Any]:
  """jax.vmap, with the mapped dimension split over a mesh axis."""
  layout = current()
  if layout is None:
    return jax.vmap(function)
  table = {
    name: tuple(a for a in axes if a != axis)  # vmap itself splits over it
    for name, axes in layout.rules.activations.items()
  }
  within = dataclasses.replace(
    layout,
    mapped=(*layout.mapped, axis),
    rules=dataclasses.replace(layout.rules, activations=table),
  )

  def on_one(*args):
    with within._named():
      return function(*args)

  return jax.vmap(on_one, spmd_axis_name=axis)


def apart(function: Callable[..., Any], axis: str) -> Callable[..., Any]:
  """Runs a function on each part of a mesh axis as if there were no others.

  What it sees and returns are the parts of arrays whose first dimension is
  split over the axis; no part knows of another, so nothing travels.
  """
  return _apart(function, axis, P(axis), P(axis))


def added_apart(
  function: Callable[[Any, Any], Any], axis: str
) -> Callable[[Any, Any], Any]:
  """The sum of function(part, whole) over the parts of a mesh axis.

  As `apart`, and what all return travels once, behind everything else.
  """

  def add(x):
    return jax.lax.psum(x.astype(_summable(x.dtype)), axis).astype(x.dtype)

  def on_part(part, whole):
    return jax.tree.map(add, function(part, whole))

  return _apart(on_part, axis, (P(axis), P()), P())


def _apart(
  function: Callable[..., Any], axis: str, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
  layout = current().within(axis)

  def on_part(*args):
    with layout._named():
      return function(*args)

  return jax.shard_map(
    on_part,
    in_specs=in_specs,
    out_specs=out_specs,
    axis_names={axis},
    check_vma=False,  # sums over the axis would be wanted, of gradients too
  )


_ABSTRACT: contextvars.ContextVar[bool] = contextvars.ContextVar(
  "abstract", default=False
)


@contextlib.contextmanager
def nowhere() -> Iterator[None]:
  """Within: only shapes are asked for, and no device is started to know them."""
  tokens = _ABSTRACT.set(True), _CURRENT.set(None)
  try:
    yield
  finally:
    _ABSTRACT.reset(tokens[0])
    _CURRENT.reset(tokens[1])


def platform() -> str:
  """Of the devices that the layout is for, which need not be here: cpu, ..."""
  if _ABSTRACT.get():
    return "none"
  layout = current()
  devices = getattr(layout and layout.mesh, "devices", None)
  return jax.default_backend() if devices is None else devices.flat[0].platform


def gathered(w: jax.Array, *names: str | None) -> jax.Array:
  """Makes a weight whole along the mesh axes that share the tokens.

  Said here, and not left to the compiler, it is one all-gather before each use;
  the gradient is added up and split in one as well.

  Args:
    w: in the type of the computation, half as wide on the wire.
    names: of its dimensions; experts stay where they are.
  """
  layout = current()
  if layout is None:
    return w
  rules, shared = layout.rules, layout.token_axes
  table = {
    name: axes
    if name == "experts"
    else tuple(a for a in axes if a not in shared)
    for name, axes in rules.params.items()
  }
  specs = [
    spec(names, w.shape, table, layout.mesh)
    for table in (rules.params, table, rules.grads)
  ]
  return _gathered(*specs, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gathered(kept: P, whole: P, split: P, w: jax.Array) -> jax.Array:
  # Pinned first, or a head of fp32 would be gathered and then made narrow.
  w = jax.lax.with_sharding_constraint(w, kept)
  return jax.lax.with_sharding_constraint(w, whole)


_gathered.defvjp(
  lambda kept, whole, split, w: (_gathered(kept, whole, split, w), None),
  lambda kept, whole, split, _, g: (
    jax.lax.with_sharding_constraint(g, split),
  ),
)


def added_up(parts: jax.Array, *names: str | None) -> jax.Array:
  """The gradient of a weight: the sum of what the shards of tokens have.

  Each device receives only what it keeps of the sum.

  Args:
    parts: [shards of tokens, ...], each where it came from.
    names: of the dimensions of the weight.
  """
  layout = current()
  if layout is None or layout.shares_no_tokens:
    return parts.sum(0)
  shared = layout.token_axes
  shape = parts.shape[1:]
  split = [
    tuple(
      axis
      for axis in ([axes] if isinstance(axes, str) else axes or ())
      if axis in shared
    )
    for axes in spec(names, shape, layout.rules.grads, layout.mesh)
  ]
  rest = tuple(axis for axis in shared if axis not in sum(split, ()))

  def on_shard(part):
    total = part[0].astype(_summable(part.dtype))
    for dim, axes in enumerate(split):
      for axis in axes:
        total = jax.lax.psum_scatter(
          total, axis, scatter_dimension=dim, tiled=True
        )
    return jax.lax.psum(total, rest).astype(part.dtype)

  return jax.shard_map(
    on_shard,
    in_specs=P(shared),
    out_specs=P(*(axes or None for axes in split)),
    axis_names={*shared, *layout.mapped},
  )(parts)


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
