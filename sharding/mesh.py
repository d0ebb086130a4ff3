"""One mesh for every kind of parallelism.

The axes, outermost first, so that what talks most lies closest:
  replica  copies that meet rarely (across slices, over the data-center network)
  data     plain data parallelism           fsdp     ZeRO: states are split too
  expert   experts of a layer               stage    layers, as a pipeline
  context  positions of one sequence        tensor   heads, ffn, vocabulary
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from sharding.pipeline import Config as Pipeline

AXES = ("replica", "data", "fsdp", "expert", "stage", "context", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of the axes; at most one is -1: all devices that are left."""

  replica: int = 1  # over the data-center network when there are slices
  data: int = -1  # copies of the parameters
  fsdp: int = 1  # shards of parameters and optimizer state
  expert: int = 1  # groups of experts
  stage: int = 1  # groups of layers, that the parts of a batch pass through
  context: int = 1  # parts of a sequence
  tensor: int = 1  # parts of a layer
  rules: str = "fsdp_tensor"  # a table of sharding/rules.py
  # The kernel of the devices: see models/attention_kernels.py.
  attention: Literal["auto", "reference", "chunked", "splash", "cudnn"] = "auto"
  # How queries meet the keys of other shards: see sharding/context.py.
  context_exchange: Literal["ring", "gather", "ulysses"] = "ring"
  # Zigzag: causal rows give every shard as much to do.
  context_order: Literal["contiguous", "zigzag"] = "contiguous"
  # The order in which stages work; None: 1f1b, and 1 repeat.
  pipeline: Pipeline | None = None

  def __post_init__(self):
    sizes = self.sizes()
    for axis, size in sizes.items():
      if size < 1 and size != -1:
        raise ValueError(
          f"{axis}={size} is no size of a mesh axis: give a positive number, "
          "or -1 for all devices that are left."
        )
    for name, default in (
      ("context_exchange", "ring"),
      ("context_order", "contiguous"),
    ):
      value = getattr(self, name)
      if self.context == 1 and value != default:
        raise ValueError(
          f"{name}={value!r} says nothing at context=1, where no row is split: "
          f"leave it {default!r}, or raise context."
        )
    if sum(size == -1 for size in sizes.values()) > 1:
      raise ValueError(
        f"more than one axis is -1 ({sizes}): only one can take what is left."
      )

  @property
  def settings(self) -> tuple[str, ...]:
    """What `rules.make` takes beside the mesh."""
    return (
      self.rules,
      self.attention,
      self.context_exchange,
      self.context_order,
    )

  def sizes(self) -> dict[str, int]:
    """Axis name -> size, in the order of the mesh."""
    return {axis: getattr(self, axis) for axis in AXES}


def resolve(config: Config, n_devices: int) -> dict[str, int]:
  """Fills in the -1 and checks that the axes cover the devices.

  Raises:
    ValueError: the product of the axes is not the number of devices.
  """
  sizes = config.sizes()
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if -1 in sizes.values():
    rest, remainder = divmod(n_devices, fixed)
    if remainder or not rest:
      raise ValueError(
        f"the mesh {_text(sizes)} does not divide {n_devices} devices: the "
        f"fixed axes multiply to {fixed}; choose divisors of {n_devices}."
      )
    return {axis: rest if s == -1 else s for axis, s in sizes.items()}
  if fixed != n_devices:
    raise ValueError(
      f"the mesh {_text(sizes)} needs {fixed} devices and there are "
      f"{n_devices}: set one axis to -1 to take what is left."
    )
  return sizes


def make(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Builds the mesh, nearest neighbours innermost; replica spans slices.

  Axes are Auto: the compiler places what the rules do not say.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = resolve(config, len(devices))
  shape = tuple(sizes.values())
  n_slices = len({getattr(d, "slice_index", 0) for d in devices})
  if n_slices > 1:
    if sizes["replica"] % n_slices:
      raise ValueError(
        f"replica={sizes['replica']} does not divide into {n_slices} slices: "
        "the replica axis spans slices, give it a multiple of their number."
      )
    across = (n_slices,) + (1,) * (len(shape) - 1)
    within = (shape[0] // n_slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(
      within, across, devices, allow_split_physical_axes=True
    )
  elif devices[0].platform == "tpu":
    grid = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  else:
    grid = np.array(devices).reshape(shape)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract(config: Config, n_devices: int) -> AbstractMesh:
  """The mesh of so many devices, which need not be here.

  Raises:
    ValueError: as `resolve`.
  """
  sizes = resolve(config, n_devices)
  kinds = (AxisType.Auto,) * len(sizes)
  return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def describe(mesh: Mesh | AbstractMesh) -> str:
  """The axes larger than one, as `data=2 x tensor=4`."""
  return _text(dict(mesh.shape))


def _text(sizes: dict[str, int]) -> str:
  return " x ".join(f"{a}={s}" for a, s in sizes.items() if s != 1) or "data=1"
