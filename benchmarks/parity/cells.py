"""What every mesh is compared on: tiny models, meshes of eight, options.

A cell is a family on a mesh, with rows that are packed or not, in so many parts.
Of families and meshes the product is taken (`_TABLES` says where not); what else a mesh leaves open (the
exchange and order of split rows, the schedule of stages, packing, parts) is
drawn for each cell by its name. The product for Llama is whole in these too.
"""

import dataclasses
import functools
import itertools
import random
from typing import Any

import numpy as np

from configs import door
from data import pipeline as batches
from data.batch import Batch
from models import deepseek, families, gpt, llama, mixtral
from models.layers import latent, moe
from sharding import mesh, rules
from sharding.pipeline import Config as Pipeline
from train.core import conflicts, loop

VOCAB, LENGTH, SIZE, N_DEVICES = 64, 16, 16, 8

_LLAMA = llama.Config(
  vocab_size=VOCAB,
  d_model=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  d_head=8,
  d_ff=64,
  max_length=LENGTH,
  dtype="float32",
)


def _mixtral(room: float | None) -> mixtral.Config:
  experts = moe.Config(
    n_experts=4,
    n_active=2,
    capacity_factor=room,
    balance_weight=0.02,
    z_weight=1e-3,
  )
  return mixtral.Config(**{**vars(_LLAMA), "d_ff": 32}, experts=experts)


def _deepseek(q_rank: int | None, ahead: bool, **experts: Any):
  """One dense layer, then layers of eight experts in four groups."""
  return deepseek.Config(
    vocab_size=VOCAB,
    d_model=32,
    n_layers=3,
    n_heads=4,
    d_ff=64,
    d_expert=16,
    max_length=LENGTH,
    experts=moe.Config(
      n_experts=8, n_active=2, n_groups=4, n_active_groups=2, **experts
    ),
    attention=latent.Config(
      q_rank=q_rank, kv_rank=8, d_plain=8, d_rotary=4, d_value=8
    ),
    ahead=ahead,
    dtype="float32",
  )


FAMILIES: dict[str, families.Config] = {
  "llama": _LLAMA,
  "windows": dataclasses.replace(
    _LLAMA,
    n_kv_heads=4,
    window=5,
    pattern=("full", "sliding"),
    qkv_biased=True,
    qk_normed=True,
    tied=True,
  ),
  "gpt": gpt.Config(
    vocab_size=VOCAB,
    max_length=LENGTH,
    d_model=32,
    n_layers=2,
    n_heads=4,
    d_ff=64,
    dtype="float32",
  ),
  "mixtral": _mixtral(None),
  "mixtral, room": _mixtral(1.25),
  "deepseek v2": _deepseek(
    None, False, n_shared=2, gates_normed=False, balance_weight=0.01
  ),
  "deepseek v3": _deepseek(
    16, True, n_shared=1, n_ranking=2, scores="sigmoid", biased=True
  ),
}

# Axes of a table for so many devices; the others come beside them.
_BASES: dict[str, dict[int, dict[str, int]]] = {
  "dp": {8: dict(data=8), 4: dict(data=4), 2: dict(data=2)},
  "zero1": {
    8: dict(data=2, fsdp=4),
    4: dict(data=2, fsdp=2),
    2: dict(fsdp=2),
  },
  "zero2": {
    8: dict(data=4, fsdp=2),
    4: dict(fsdp=4),
    2: dict(fsdp=2),
  },
  "fsdp": {8: dict(fsdp=8), 4: dict(data=2, fsdp=2), 2: dict(fsdp=2)},
  "tensor": {
    8: dict(data=4, tensor=2),
    4: dict(data=2, tensor=2),
    2: dict(tensor=2),
  },
  "fsdp_tensor": {
    8: dict(data=2, fsdp=2, tensor=2),
    4: dict(fsdp=2, tensor=2),
    2: dict(tensor=2),
  },
  "expert": {
    8: dict(fsdp=2, expert=4),
    4: dict(data=2, expert=2),
    2: dict(expert=2),
  },
  "expert_tensor": {
    8: dict(expert=4, tensor=2),
    4: dict(expert=2, tensor=2),
    2: dict(expert=2),
  },
}
# Families that compile for long, or that are another one's kin, take a few.
_TABLES = {
  "windows": ("zero1", "fsdp", "fsdp_tensor"),
  "deepseek v2": ("zero2", "fsdp_tensor", "expert"),
  "deepseek v3": ("dp", "fsdp", "expert_tensor"),
}
_BESIDE: tuple[dict[str, int], ...] = (
  {},
  dict(replica=2),
  dict(context=2),
  dict(stage=2),
  dict(context=2, stage=2),
)
# Of the tables that split most: over four, too.
_LONG: tuple[dict[str, int], ...] = (dict(context=4), dict(stage=4))
_LONG_TABLES = ("fsdp", "fsdp_tensor", "expert")
_EXCHANGES = ("ring", "gather", "ulysses")
_ORDERS = ("contiguous", "zigzag")
SCHEDULES = {
  "gpipe": Pipeline(schedule="gpipe"),
  "1f1b": Pipeline(),
  "circular": Pipeline(schedule="gpipe", n_repeats=2),
  "interleaved": Pipeline(n_repeats=2),
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One comparison with one device."""

  family: str
  mesh: mesh.Config
  is_packed: bool = True
  n_micro: int = 1
  is_uneven: bool = False  # one layer more than the stages share evenly

  @property
  def strategy(self) -> str:
    """The table and the sizes of the axes."""
    return f"{self.mesh.rules}: {mesh.describe(self._abstract())}"

  @property
  def name(self) -> str:
    """The family, the strategy and all options."""
    options = ["packed" if self.is_packed else "not packed"]
    if self.n_micro > 1:
      options.append(f"{self.n_micro} parts")
    if self.mesh.context > 1:
      options += [self.mesh.context_exchange, self.mesh.context_order]
    if self.mesh.stage > 1:
      options += [n for n, how in SCHEDULES.items() if how == self.how]
      options += ["uneven"] * self.is_uneven
    return f"{self.family} | {self.strategy} | {', '.join(options)}"

  @property
  def how(self) -> Pipeline | None:
    """The schedule of the stages."""
    return self.mesh.pipeline

  @property
  def model(self) -> families.Config:
    """The family's, with layers for all stages."""
    model = FAMILIES[self.family]
    if self.mesh.stage == 1:
      return model
    n_groups = self.mesh.stage * self.how.n_repeats + self.is_uneven
    n_first = getattr(model, "n_dense", 0)
    n_layers = n_first + n_groups * len(model.pattern)
    return dataclasses.replace(model, n_layers=n_layers)

  @property
  def refusal(self) -> str | None:
    """Why this is no cell: what the house says of it."""
    sections = {
      "model": self.model,
      "mesh": self.mesh,
      "batch": batches.Config(size=SIZE, length=LENGTH),
      "train": loop.Config(steps=1, n_micro=self.n_micro),
    }
    try:
      conflicts.check(door.Config(sections, {}), N_DEVICES)
    except ValueError as error:
      return str(error)
    experts = getattr(self.model, "experts", None)
    if experts and experts.capacity_factor and self.mesh.context > 1:
      return (
        "each part of a split row has a room of its own in every expert: other "
        "tokens are dropped, so the numbers are others by definition."
      )
    return None

  def _abstract(self) -> rules.AnyMesh:
    return mesh.abstract(self.mesh, N_DEVICES)


_FEW = {
  "llama": {
    "dp": [dict(data=8)],
    "zero1": [dict(data=2, fsdp=4)],
    "zero2": [dict(data=4, fsdp=2)],
    "fsdp": [
      dict(data=1, fsdp=8),
      dict(data=2, fsdp=2, replica=2),
      dict(data=1, fsdp=2, stage=4),
    ],
    "tensor": [dict(data=4, tensor=2), dict(data=2, tensor=2, stage=2)],
    "fsdp_tensor": [
      dict(data=2, fsdp=2, tensor=2),
      dict(data=1, tensor=2, context=2, stage=2),
    ],
  },
  "windows": {
    "zero1": [dict(data=2, fsdp=2, context=2)],
    "fsdp": [dict(data=1, fsdp=2, context=4)],
    "fsdp_tensor": [dict(data=1, fsdp=2, tensor=2, context=2)],
  },
  "gpt": {"fsdp_tensor": [dict(data=2, fsdp=2, tensor=2)]},
  "mixtral": {
    "expert": [
      dict(data=1, fsdp=2, expert=4),
      dict(data=1, expert=2, context=4),
    ],
    "expert_tensor": [dict(data=1, expert=4, tensor=2)],
  },
  "mixtral, room": {
    "dp": [dict(data=8)],
    "expert": [dict(data=1, fsdp=2, expert=4)],
    "expert_tensor": [dict(data=1, expert=4, tensor=2)],
  },
}


def few() -> list[Cell]:
  """One for every table, and for what else is split; seconds each."""
  return [
    cell
    for family, tables in _FEW.items()
    for table, found in tables.items()
    for sizes in found
    for cell in draw(family, table, sizes)
  ]


@functools.cache
def every() -> tuple[Cell, ...]:
  """All cells."""
  found: list[Cell] = []
  for where in _meshes():
    found += draw(*where)
  return tuple(dict.fromkeys(found + _wide_cells()))


def draw(family: str, table: str, sizes: dict[str, int]) -> list[Cell]:
  """The cell of a family on a mesh; none where all options are refused."""
  drawn = _options(family, table, sizes)
  random.Random(f"{family} {table} {sizes}").shuffle(drawn)
  return list(itertools.islice((c for c in drawn if not c.refusal), 1))


def refused() -> dict[str, str]:
  """What of the product is no cell, and the words of the refusal."""
  found = {}
  for table, axis in itertools.product(_BASES, mesh.AXES):
    sizes = {"data": 1, axis: N_DEVICES}
    cell = Cell("llama", mesh.Config(**sizes, rules=table))
    try:
      rules.make(cell._abstract(), table)
    except ValueError as error:
      found[f"{table}: {axis}={N_DEVICES}"] = str(error)
  for family, table, sizes in _meshes():
    for cell in _options(family, table, sizes):
      if cell.refusal:
        found[cell.name] = cell.refusal
  return found


@functools.cache
def batch(is_packed: bool) -> Batch:
  """Rows of two documents, or of one and padding; weights of every kind."""
  rng = np.random.default_rng(0)
  shape = SIZE, LENGTH
  split = rng.integers(4, 12, (SIZE, 1))
  at = np.arange(LENGTH, dtype=np.int32)[None]
  is_behind = at >= split
  weights = rng.integers(0, 2, shape) * (rng.random((SIZE, 1)) > 0.3)
  if is_packed:
    segments, positions = 1 + is_behind, np.where(is_behind, at - split, at)
  else:
    segments = ~is_behind | (split % 2 == 0)  # every other row is full
    positions = np.broadcast_to(at, shape) * segments
    weights = weights * segments
  return Batch(
    tokens=rng.integers(0, VOCAB, shape).astype(np.int32),
    targets=rng.integers(0, VOCAB, shape).astype(np.int32),
    weights=weights.astype(np.float32),
    segment_ids=segments.astype(np.int32),
    positions=positions.astype(np.int32),
  )


def _meshes() -> list[tuple[str, str, dict[str, int]]]:
  return [
    (family, table, {"data": 1, **base[N_DEVICES // _size(beside)], **beside})
    for family in FAMILIES
    for table, base in _BASES.items()
    if table in _TABLES.get(family, _BASES)
    for beside in _BESIDE + _LONG * (table in _LONG_TABLES)
  ]


def _size(sizes: dict[str, int]) -> int:
  return int(np.prod([*sizes.values()], dtype=int))


def _options(family: str, table: str, sizes: dict[str, int]) -> list[Cell]:
  """All cells of a family on a mesh, those that are refused too."""
  is_split, is_cut = "context" in sizes, "stage" in sizes
  return [
    Cell(
      family,
      mesh.Config(
        **sizes,
        rules=table,
        context_exchange=exchange,
        context_order=order,
        pipeline=how,
      ),
      is_packed,
      n_micro,
      is_uneven,
    )
    for exchange in _EXCHANGES[: 3 if is_split else 1]
    for order in _ORDERS[: 2 if is_split else 1]
    for how in (SCHEDULES.values() if is_cut else [None])
    for is_uneven in ((False, True) if is_cut else (False,))
    for n_micro in ((2, 4) if is_cut else (1, 2))
    for is_packed in (True, False)
  ]


def _wide_cells() -> list[Cell]:
  """Llama with every exchange and order, and every schedule."""
  wide = [
    ("fsdp_tensor", dict(data=1, tensor=2, fsdp=2, context=2)),
    ("dp", dict(data=4, stage=2)),
  ]
  return [
    cell
    for table, sizes in wide
    for cell in _options("llama", table, sizes)
    if cell.is_packed and cell.n_micro in (1, 4) and not cell.refusal
  ]
