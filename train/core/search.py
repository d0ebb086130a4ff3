"""Which mesh, remat policy and micro-batches fit, and which is fastest.

Both by estimates: bytes as in planning.py; seconds as the larger of the core's
(FLOPs with what remat repeats, at 70 % of the peak) and the links' (weights
gathered and gradients scattered for fsdp, activations for tensor).
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from configs import door
from models import flops
from sharding import mesh as meshes
from sharding import rules
from sharding.topology import Topology
from train.core import planning

_CORE_SHARE = 0.7  # of the peak that matrix products of a model reach
# FLOPs over those without remat; at least as many as any model here repeats.
_REPEATED = {
  "none": 1.0, "minimal": 1.02, "save_qkv": 1.19, "full": 1.27,
}  # fmt: skip
_G = 2.0**30


@dataclasses.dataclass(frozen=True)
class Choice:
  """Settings that fit, and what they are estimated to take."""

  overrides: dict[str, Any]
  peak_bytes: float
  step_seconds: float

  def __str__(self) -> str:
    settings = " ".join(f"--config.{k}={v}" for k, v in self.overrides.items())
    return (
      f"{self.step_seconds:8.3f} s  {self.peak_bytes / _G:7.2f} GiB  {settings}"
    )

  def asdict(self) -> dict[str, Any]:
    """As plain data."""
    return dataclasses.asdict(self)


def search(config: door.Config, topology: Topology) -> list[Choice]:
  """All combinations that fit, the fastest first."""
  found = []
  for overrides in _combinations(config, topology):
    changed = _changed(config, overrides)
    try:
      plan = _estimate(changed, topology)
    except ValueError:  # sizes that do not divide
      continue
    if plan.fits:
      seconds = _seconds(changed, topology, plan)
      found.append(Choice(overrides, plan.peak_bytes, seconds))
  return sorted(found, key=lambda c: c.step_seconds)


def way_out(config: door.Config, topology: Topology) -> str:
  """The one setting that makes a step fit, by estimate, or that none does."""
  for overrides in _knobs(config):
    try:
      plan = _estimate(_changed(config, overrides), topology)
    except ValueError:
      continue
    if plan.fits:
      ((key, value),) = overrides.items()
      return (
        f"it would fit with --config.{key}={value} "
        f"({plan.peak_bytes / _G:.2f} GiB, estimated)"
      )
  return "no single setting makes it fit: take more devices, or --search"


def _estimate(config: door.Config, topology: Topology) -> planning.Plan:
  n_shards = rules.make(
    meshes.abstract(config.mesh, topology.n_devices), *config.mesh.settings
  ).n_batch_shards
  if config.batch.size % (n_shards * config.train.n_micro):
    raise ValueError("rows do not divide")
  return planning.estimate(config, topology)


def _changed(config: door.Config, overrides: dict[str, Any]) -> door.Config:
  sections = dict(config.sections)
  for key, value in overrides.items():
    section, field = key.split(".")
    changed = dataclasses.replace(sections[section], **{field: value})
    sections[section] = changed
  return door.Config(sections, config.names)


def _knobs(config: door.Config) -> Iterator[dict[str, Any]]:
  """What is cheapest first."""
  for chunk in (512, 256, 128):
    if chunk < config.objective.chunk_tokens:
      yield {"objective.chunk_tokens": chunk}
  if config.model.remat != "full":
    yield {"model.remat": "full"}
  for n in (2, 4, 8, 16, 32):
    if n > config.train.n_micro:
      yield {"train.n_micro": n}
  yield {"mesh.rules": "fsdp"}


def _combinations(
  config: door.Config, topology: Topology
) -> Iterator[dict[str, Any]]:
  n = topology.n_devices // config.mesh.expert // topology.n_slices
  splits = [t for t in (1, 2, 4, 8) if not n % t]
  for tensor, remat, n_micro in itertools.product(
    splits, _REPEATED, (1, 2, 4, 8, 16)
  ):
    rules = "expert" if config.mesh.expert > 1 else "fsdp"
    yield {
      "mesh.replica": topology.n_slices,
      "mesh.data": 1,
      "mesh.fsdp": n // tensor,
      "mesh.tensor": tensor,
      "mesh.rules": rules if tensor == 1 else f"{rules}_tensor",
      "model.remat": remat,
      "train.n_micro": n_micro,
    }


def _seconds(
  config: door.Config, topology: Topology, plan: planning.Plan
) -> float:
  chip, model = topology.chip, config.model
  repeated = _REPEATED[model.remat]
  core = plan.model_flops * repeated / (_CORE_SHARE * chip.flops)
  sizes = meshes.resolve(config.mesh, topology.n_devices)
  n_fsdp, n_tensor = sizes["fsdp"], sizes["tensor"]
  weights = 2 * flops.n_params(model) / n_tensor / sizes["expert"]
  n_gathers = 2 * config.train.n_micro + 1  # forward, backward; gradients once
  wire = weights * n_gathers * (n_fsdp - 1) / n_fsdp
  n_tokens = config.batch.size * config.batch.length
  n_tokens /= topology.n_devices / n_tensor
  # Two exchanges of the residual stream a layer forward, as many backward and
  # in what is repeated; an all-reduce moves it twice.
  moved = 2 * 2 * 2 * n_tokens * model.d_model * (1 + repeated)
  wire += model.n_layers * moved * (n_tensor - 1) / n_tensor
  return max(core, wire / (2 * chip.ici_rate))
