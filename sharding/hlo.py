"""What a compiled program does on one device, read from its scheduled HLO.

The compiler's own cost analysis counts the body of a loop once, whatever the
number of its turns. Here a loop over layers counts as often as it runs: matrix
products, collectives with the mesh axes they cross, Pallas kernels, and the
cycles that a TPU compiler expects of each fusion.

    program = hlo.read(compiled.as_text(), mesh)
    program.flops, program.cycles, program.collectives
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator

import numpy as np

from sharding.rules import AnyMesh

KINDS = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
  "collective-permute", "ragged-all-to-all",
)  # fmt: skip
_BITS = {
  "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16,
  "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64,
  "u64": 64, "f64": 64, "f8e4m3fn": 8, "f8e5m2": 8,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\]")
# Between slices the hosts carry it: one send and one recv for each exchange.
_FAR = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_UNTOLD = 2**63 - 1  # cycles of v7x's sparse cores, which work beside the core
_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # 0, 1, ... so shaped and turned
_KERNELS = ("tpu_custom_call", "Mosaic")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of exchange over the same axes.

  Attributes:
    kind: of KINDS.
    axes: of the mesh, that its groups span; none where nobody is known.
    count: how often it runs.
    wire_bytes: what one device receives in all, by the ring algorithm.
  """

  kind: str
  axes: tuple[str, ...]
  count: int
  wire_bytes: float


@dataclasses.dataclass(frozen=True)
class Program:
  """Sums over one run of a program, on one device.

  Attributes:
    flops: of matrix products and convolutions; those of kernels are not known.
    cycles: that the compiler expects; 0 where it is no TPU's.
    kernels: how often each Pallas kernel runs.
    collectives: the largest first.
    unknown_loops: loops whose turns could not be told; they count once.
  """

  flops: float
  cycles: float
  kernels: dict[str, int]
  collectives: tuple[Collective, ...]
  unknown_loops: tuple[str, ...]

  @property
  def wire_bytes(self) -> float:
    """What one device receives from others."""
    return sum(c.wire_bytes for c in self.collectives)


@dataclasses.dataclass(frozen=True)
class _Line:
  """One instruction: %name = type op(operands), rest."""

  name: str
  type: str
  op: str
  operands: str
  rest: str
  is_root: bool

  @functools.cached_property
  def inputs(self) -> list[str]:
    return re.findall(r"%([\w.\-~]+)", self.operands)

  def refers(self, key: str) -> str | None:
    """The computation named by an attribute."""
    found = re.search(rf"\b{key}=%?([\w.\-~]+)", self.rest)
    return found and found.group(1)

  @property
  def number(self) -> int | None:
    """Of a constant."""
    found = re.fullmatch(r"\s*(-?\d+)\s*", self.operands)
    return int(found.group(1)) if self.op == "constant" and found else None


_Computation = dict[str, _Line]


def read(text: str, mesh: AnyMesh) -> Program:
  """Reads `compiled.as_text()`.

  Args:
    text: scheduled HLO of one device.
    mesh: that the program was compiled for; its axes name the collectives.
  """
  walk = _Walk(*_parse(text), mesh)
  sums = walk.run(walk.entry)
  grouped: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0.0])
  for (_, kind, axes), (count, n_bytes) in sums.exchanges.items():
    grouped[kind, axes][0] += count
    grouped[kind, axes][1] += count * n_bytes
  found = [Collective(*key, int(n), b) for key, (n, b) in grouped.items()]
  return Program(
    flops=sums.flops,
    cycles=sums.cycles,
    kernels=dict(sums.kernels),
    collectives=tuple(sorted(found, key=lambda c: -c.wire_bytes)),
    unknown_loops=tuple(walk.unknown),
  )


@dataclasses.dataclass
class _Sums:
  flops: float = 0.0
  cycles: float = 0.0
  kernels: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  # (identity, kind, axes) -> (times, bytes of one)
  exchanges: dict[tuple, tuple[int, float]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def n_bytes(self) -> float:
    return float(sum(n * size for n, size in self.exchanges.values()))

  def add(self, other: "_Sums", times: int = 1) -> None:
    self.flops += times * other.flops
    self.cycles += times * other.cycles
    for name, n in other.kernels.items():
      self.kernels[name] += times * n
    for key, (n, n_bytes) in other.exchanges.items():
      self.exchange(key, times * n, n_bytes)

  def exchange(self, key: tuple, times: int, n_bytes: float) -> None:
    """An asynchronous one stands in several fusions, and is one."""
    before = self.exchanges.get(key, (0, 0.0))
    self.exchanges[key] = max(before[0], times), max(before[1], n_bytes)


class _Walk:
  """Computations, each summed up once."""

  def __init__(
    self, computations: dict[str, _Computation], entry: str, mesh: AnyMesh
  ):
    self.entry, self.unknown = entry, []
    self._computations, self._mesh = computations, mesh
    self._known: dict[tuple[str, bool], _Sums] = {}

  def run(self, name: str, is_fused: bool = False) -> _Sums:
    """Sums of a computation; in a fusion only the whole has cycles."""
    if (name, is_fused) not in self._known:
      sums = _Sums()
      lines = self._computations.get(name, {})
      for line in lines.values():
        self._count(sums, line, lines, is_fused)
      self._known[name, is_fused] = sums
    return self._known[name, is_fused]

  def _count(self, sums, line, lines, is_fused):
    kind = line.op.removesuffix("-start")
    if line.op == "while":
      times = _turns(line, lines, self._computations)
      if times is None:
        self.unknown.append(line.name)
      body = self.run(line.refers("body"), is_fused)
      return sums.add(body, 1 if times is None else times)
    if line.op == "conditional":
      ways = [self.run(n, is_fused) for n in _branches(line)]
      return sums.add(max(ways, key=lambda w: (w.cycles, w.flops, w.n_bytes)))
    if line.op in ("fusion", "call", "async-start", "call-start"):
      inner = line.refers("calls") or line.refers("to_apply")
      if inner:
        sums.add(self.run(inner, is_fused or line.op == "fusion"))
    elif kind in KINDS:
      axes, size = _span(line.rest, self._mesh)
      n_bytes = _wire(kind, line.type, size)
      if kind == "ragged-all-to-all" and (sent := lines.get(line.inputs[0])):
        # One side has room for the worst case, the other what there is.
        n_bytes = min(n_bytes, _wire(kind, sent.type, size))
      sums.exchange((_identity(line, is_fused), kind, axes), 1, n_bytes)
    elif line.op == "recv" and _FAR.search(line.rest):
      kind, axes, size = _across_slices(line.rest, self._mesh)
      received = line.type.split("]")[0] + "]"  # and a context, and a token
      sums.exchange(
        (line.refers("channel_id"), kind, axes), 1, _wire(kind, received, size)
      )
    elif line.op in ("dot", "convolution"):
      sums.flops += _FLOPS[line.op](line, lines)
    elif line.op == "custom-call" and any(
      f'custom_call_target="{k}"' in line.rest for k in _KERNELS
    ):
      sums.kernels[re.sub(r"[.\d]+$", "", line.name)] += 1
    cycles = re.search(r'"estimated_cycles":"?(\d+)', line.rest)
    if cycles and not is_fused and int(cycles.group(1)) != _UNTOLD:
      sums.cycles += int(cycles.group(1))


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
  computations: dict[str, _Computation] = {}
  entry, current = "", None
  for row in text.splitlines():
    if row.rstrip() == "}" or row.startswith("}, execution_thread="):
      current = None
    elif current is not None:
      if line := _line(row):
        current[line.name] = line
    elif row.rstrip().endswith("{") and not row.startswith("HloModule"):
      head = re.match(r"(ENTRY )?%?([\w.\-~]+) ", row)
      if head:
        current = computations[head.group(2)] = {}
        entry = head.group(2) if head.group(1) else entry
  return computations, entry


def _line(row: str) -> _Line | None:
  head = re.match(r"\s*(ROOT )?%?([\w.\-~]+) = ", row)
  if head is None:
    return None
  end = head.end()
  # The type of a tuple stands in brackets, and so do parts of layouts.
  stop = _close(row, end) if row[end] == "(" else row.index(" ", end)
  call = re.match(r"\s*([a-z][\w\-]*)\(", row[stop:])
  if call is None:
    return None
  opened = stop + call.end() - 1
  closed = _close(row, opened)
  return _Line(
    head.group(2),
    row[end:stop],
    call.group(1),
    row[opened + 1 : closed - 1],
    row[closed:],
    bool(head.group(1)),
  )


def _identity(line: _Line, is_fused: bool) -> str:
  """What copies of one exchange have in common, which stand in several fusions.

  That is its channel; but all that a shard_map says stand under the first.
  """
  channel = line.refers("channel_id")
  is_shared = channel in (None, "1") or line.op.startswith("ragged")
  if not is_shared:
    return channel
  said = re.search(r"metadata=\{.*?\}", line.rest)
  return f"{line.type} {said.group()}" if is_fused and said else line.name


def _close(row: str, opened: int) -> int:
  """Where the bracket that opens at a place has closed."""
  depth = 0
  for i in range(opened, len(row)):
    depth += (row[i] == "(") - (row[i] == ")")
    if not depth:
      return i + 1
  return len(row)


def _branches(line: _Line) -> list[str]:
  listed = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
  if listed:
    return re.findall(r"%([\w.\-~]+)", listed.group(1))
  ways = (line.refers("true_computation"), line.refers("false_computation"))
  return [way for way in ways if way]


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
  return [
    (dtype, tuple(int(n) for n in dims.split(",") if n))
    for dtype, dims in _ARRAY.findall(text)
    if dtype in _BITS
  ]


def _sizes(text: str) -> list[float]:
  return [_BITS[d] / 8 * math.prod(dims) for d, dims in _shapes(text)]


# ---- loops ----


def _turns(
  loop: _Line, lines: _Computation, computations: dict[str, _Computation]
) -> int | None:
  """How often a loop turns that counts by a fixed step to a fixed limit."""
  told = re.search(r"known_trip_count[^0-9]*(\d+)", loop.rest)
  if told:
    return int(told.group(1))
  condition = computations.get(loop.refers("condition"), {})
  body = computations.get(loop.refers("body"), {})
  test = next((x for x in condition.values() if x.is_root), None)
  if test is None or test.op != "compare" or len(test.inputs) != 2:
    return None
  index, limit = _index(condition, test.inputs[0]), None
  limit = _constant(condition, test.inputs[1])
  if index is None or limit is None:
    return None
  start = _carried(lines, loop.inputs[0], index)
  step = _step(body, index, computations)
  if start is None or not step:
    return None
  limit += "direction=LE" in test.rest
  return max(0, math.ceil((limit - start) / step))


def _source(lines: _Computation, name: str) -> _Line | None:
  """Where a value comes from, through copies."""
  line = lines.get(name)
  while line is not None and line.op in ("copy", "bitcast", "convert"):
    line = lines.get(line.inputs[0])
  return line


def _constant(lines: _Computation, name: str) -> int | None:
  line = _source(lines, name)
  return None if line is None else line.number


def _index(lines: _Computation, name: str) -> int | None:
  line = _source(lines, name)
  if line is None or line.op != "get-tuple-element":
    return None
  return int(re.search(r"index=(\d+)", line.rest).group(1))


def _carried(lines: _Computation, name: str, index: int) -> int | None:
  """The constant that a tuple begins with at an index; loops start from 0."""
  made = _source(lines, name)
  if made is None or made.op != "tuple":
    return None
  given = _constant(lines, made.inputs[index])
  return 0 if given is None else given


def _step(
  body: _Computation, index: int, computations: dict[str, _Computation]
) -> int | None:
  root = next((x for x in body.values() if x.is_root), None)
  if root is None or root.op != "tuple":
    return None
  added = _source(body, root.inputs[index])
  if added is None:
    return None
  if added.op == "fusion":
    lines = computations.get(added.refers("calls"), {})
    steps = [line.number for line in lines.values() if line.number]
  elif added.op == "add":
    steps = [_constant(body, name) for name in added.inputs]
  else:
    return None
  return next((step for step in steps if step), None)


# ---- collectives ----


def _span(rest: str, mesh: AnyMesh) -> tuple[tuple[str, ...], int]:
  """The mesh axes that a collective's groups span, and their size."""
  pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
  if pairs:
    found = [
      tuple(map(int, pair.split(",")))
      for pair in re.findall(r"(\d+,\d+)", pairs.group(1))
    ]
    return _axes(found, mesh), 2
  groups = list(_groups(rest))
  if not groups:
    return (), 1
  return _axes(groups, mesh), len(groups[0])


def _across_slices(
  rest: str, mesh: AnyMesh
) -> tuple[str, tuple[str, ...], int]:
  """Kind, axes and size of an exchange between slices."""
  kind = _FAR.search(rest).group(1).lower().replace("_", "-")
  kind = "collective-permute" if kind == "one-to-one" else kind
  slices, last = re.search(
    r'_xla_megascale_target="\{([\d,]+)\}x\{0:(\d+)\}', rest
  ).groups()
  n_slices, n_within = len(slices.split(",")), int(last) + 1
  # The mesh counts the devices of one slice after those of another.
  devices = np.arange(n_slices * n_within).reshape(n_slices, n_within)
  return kind, _axes(map(tuple, devices.T.tolist()), mesh), n_slices


def _groups(rest: str) -> Iterator[tuple[int, ...]]:
  if listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
    for group in re.findall(r"\{([\d,]+)\}", listed.group(1)):
      yield tuple(map(int, group.split(",")))
  elif iota := re.search(rf"replica_groups=\[([\d,]+)\]<={_ORDER}", rest):
    shape = _numbers(iota.group(1))
    yield from map(tuple, _ids(*iota.groups()[1:]).reshape(shape).tolist())
  elif named := re.search(
    r"replica_groups=mesh\[([^\]]*)\]"
    rf"(?:, device_ids=\({_ORDER}\))?\s*\{{([^}}]*)\}}",
    rest,
  ):
    mesh, *order, spanned = named.groups()
    yield from _named_groups(mesh, spanned, _ids(*order) if order[0] else None)


def _ids(shape: str, order: str | None) -> np.ndarray:
  """Numbers of devices, in an order that a text says."""
  ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return ids if order is None else ids.transpose(_numbers(order))


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(","))


def _named_groups(
  mesh: str, spanned: str, devices: np.ndarray | None
) -> Iterator[tuple[int, ...]]:
  """Groups as axes of a mesh of the compiler's own.

  'axis_0':(2)4 is the part of axis_0 of size 4 that lies within parts of 2.

  Args:
    mesh: names and sizes of its axes.
    spanned: the axes or parts of axes within a group.
    devices: in the order in which the mesh has them; None: from 0 on.
  """
  sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
  shape, names = [], []
  parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", spanned)
  wanted = set()
  for name, size in sizes.items():
    cuts = sorted(
      (int(before), int(n)) for axis, before, n in parts if axis == name and n
    )
    if (name, "", "") in parts:
      wanted.add((name, 0))
    done = 1
    for before, n in cuts:
      if before > done:
        shape.append(before // done)
        names.append((name, -before))
      shape.append(n)
      names.append((name, before))
      wanted.add((name, before))
      done = before * n
    if size // done > 1 or not cuts:
      shape.append(size // done)
      names.append((name, 0))
  inside = [i for i, name in enumerate(names) if name in wanted]
  outside = [i for i in range(len(shape)) if i not in inside]
  ids = np.arange(math.prod(shape)) if devices is None else devices
  ids = ids.reshape(shape)
  n_inside = math.prod(shape[i] for i in inside)
  ids = ids.transpose(outside + inside).reshape(-1, n_inside)
  yield from map(tuple, ids.tolist())


def _axes(groups: Iterable[tuple[int, ...]], mesh: AnyMesh) -> tuple[str, ...]:
  """The axes along which the members of a group differ."""
  shape = tuple(mesh.shape.values())
  differ = np.zeros(len(shape), bool)
  for group in groups:
    places = np.stack(np.unravel_index(group, shape))
    differ |= (places != places[:, :1]).any(1)
  return tuple(np.array(list(mesh.shape))[differ].tolist())


def _wire(kind: str, result: str, size: int) -> float:
  """Bytes that one device receives, by the ring algorithm."""
  sizes = _sizes(result)
  largest = max(sizes, default=0.0)
  share = (size - 1) / size
  if kind == "collective-permute":
    return largest
  if kind == "all-reduce":
    return 2 * share * sum(sizes)
  if kind == "reduce-scatter":
    return (size - 1) * sum(sizes)
  return share * largest


# ---- matrix products ----


def _dot_flops(line: _Line, lines: _Computation) -> float:
  left = lines.get(line.inputs[0])
  if left is None:
    return 0.0
  dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
  shape = _shapes(left.type)[0][1]
  summed = [shape[int(d)] for d in dims.group(1).split(",") if d]
  return 2.0 * math.prod(_shapes(line.type)[0][1]) * math.prod(summed)


def _convolution_flops(line: _Line, lines: _Computation) -> float:
  """Products with padding do not count: a TPU writes dots as convolutions."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest)
  left, right = (lines.get(name) for name in line.inputs[:2])
  if labels is None or left is None or right is None:
    return 0.0
  of_left, of_right, of_out = labels.groups()
  left_shape, right_shape = (_shapes(x.type)[0][1] for x in (left, right))
  out_shape = _shapes(line.type)[0][1]
  total = (
    2.0
    * out_shape[of_out.index("b")]
    * out_shape[of_out.index("f")]
    * right_shape[of_right.index("i")]
  )
  window = re.search(r"window=\{([^}]*)\}", line.rest)
  window = window.group(1) if window else ""
  for i, dim in enumerate(sorted(c for c in of_right if c.isdigit())):
    total *= _taps(
      left_shape[of_left.index(dim)],
      right_shape[of_right.index(dim)],
      out_shape[of_out.index(dim)],
      stride=_of_window(window, "stride", i, 1),
      before=_of_window(window, "pad", i, 0),
      left_step=_of_window(window, "lhs_dilate", i, 1),
      right_step=_of_window(window, "rhs_dilate", i, 1),
    )
  return total


def _of_window(window: str, key: str, i: int, default: int) -> int:
  found = re.search(rf"\b{key}=([\dx_\-]+)", window)
  return int(found.group(1).split("x")[i].split("_")[0]) if found else default


def _taps(n_left, n_right, n_out, *, stride, before, left_step, right_step):
  """Pairs of an output and a tap that meet an element, not padding."""
  out, tap = np.arange(n_out)[:, None], np.arange(n_right)[None]
  at = out * stride - before + tap * right_step
  inside = (at >= 0) & (at <= (n_left - 1) * left_step)
  return int((inside & (at % left_step == 0)).sum())


_FLOPS = {"dot": _dot_flops, "convolution": _convolution_flops}
