"""TPU slices that are not here: their devices, to compile for, and what they do.

A topology is KIND:SHAPE, such as v5p:2x2x4, or N*KIND:SHAPE for N slices joined
by the data-center network. libtpu compiles for all of them without a TPU.

Figures are of the vendor's data sheets (cloud.google.com/tpu/docs) and, for the
links, of "How to Scale Your Model" (jax-ml.github.io/scaling-book); clocks as
the compiler's cycles were seen to match published step times, v6e's and 7x's
assumed to be as v5p's.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """What one device can do at best; a v7x chip is two devices."""

  flops: float  # dense bf16, a second
  hbm_bytes: float  # that the compiler gives to a program
  ici_rate: float  # bytes a second over one link, one way
  hertz: float  # that the compiler's cycles are counted in
  shapes: tuple[str, ...]  # slices that are offered


_G = 2.0**30
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8",
  "8x8x16", "8x16x16", "16x16x16",
)  # fmt: skip
CHIPS = {
  "v5e": Chip(
    flops=197e12, hbm_bytes=15.75 * _G, ici_rate=45e9,
    hertz=1.5e9, shapes=_FLAT,
  ),
  "v5p": Chip(
    flops=459e12, hbm_bytes=95.74 * _G, ici_rate=90e9,
    hertz=1.75e9, shapes=_CUBES,
  ),
  "v6e": Chip(
    flops=918e12, hbm_bytes=31.25 * _G, ici_rate=90e9,
    hertz=1.75e9, shapes=_FLAT,
  ),
  "tpu7x": Chip(
    flops=1153.5e12, hbm_bytes=94.75 * _G, ici_rate=90e9,
    hertz=1.75e9, shapes=_CUBES,
  ),
}  # fmt: skip
# libtpu asks for no TPU, stands beside another one, and does not talk of either.
_ALONE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
}
DCN_RATE = 6.25e9  # bytes a second between slices, of one device


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice, or several."""

  name: str
  kind: str
  n_slices: int
  n_devices: int  # of all slices

  @property
  def chip(self) -> Chip:
    """What one of its devices can do."""
    return CHIPS[self.kind]

  def devices(self) -> Sequence[jax.Device]:
    """To compile for; nothing can be computed on them.

    Raises:
      ValueError: libtpu is missing, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
      raise ValueError(
        "there is no libtpu, which holds the TPU compilers: "
        "pip install 'throughline[plan]' (or give --fast, which estimates)."
      )
    for name, value in _ALONE.items():
      os.environ.setdefault(name, value)
    more = {"num_slices": self.n_slices} if self.n_slices > 1 else {}
    shape = self.name.rpartition("*")[2]
    if shape.endswith(":1x1"):
      more["chips_per_host_bounds"] = (1, 1, 1)  # else libtpu assumes four
    try:
      found = topologies.get_topology_desc(
        platform="tpu", topology_name=shape, **more
      )
    except jax.errors.JaxRuntimeError as error:
      raise ValueError(f"topology {self.name}: {error}") from None
    return found.devices


def parse(name: str) -> Topology:
  """Reads KIND:SHAPE or N*KIND:SHAPE.

  Raises:
    ValueError: no such kind or shape; lists those that are known.
  """
  read = re.fullmatch(r"(?:(\d+)\*)?([a-z0-9]+):(\d+(?:x\d+)*)", name)
  if read is None or read.group(2) not in CHIPS:
    kinds = "; ".join(
      f"{kind}:{', '.join(chip.shapes)}" for kind, chip in CHIPS.items()
    )
    raise ValueError(f"topology={name!r} is not known. Known: {kinds}.")
  n_slices, kind, shape = int(read.group(1) or 1), read.group(2), read.group(3)
  shapes = CHIPS[kind].shapes
  if shape not in shapes:
    near = difflib.get_close_matches(shape, shapes, n=1, cutoff=0.0)[0]
    raise ValueError(
      f"{kind} comes in no slice of {shape}; the nearest is {kind}:{near}. "
      f"Known: {', '.join(shapes)}."
    )
  n_devices = math.prod(map(int, shape.split("x")))
  n_devices *= 2 if kind == "tpu7x" else 1
  return Topology(name, kind, n_slices, n_slices * n_devices)
