"""What a step takes of a device: measured by its compiler, or estimated.

The estimate adds up what is known without compiling: the state and gradients by
their shardings, what the layers save for the backward pass by the policy, and
the larger of two workspaces, that of the head and that of one layer's backward
pass. Of recurrent models and of those that read a source, it is what JAX traces
that the backward pass reads, without what a compiler pads.

Seconds are those of the busiest resource, for all of them work side by side:
the core (the compiler's cycles over the clock, and Pallas kernels at half of
the peak), the links between chips (two of them, both ways of a ring), and the
network between slices.
"""

import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax
import numpy as np

from configs import door
from models import families, flops
from sharding import hlo, report, rules
from sharding import mesh as meshes
from sharding.rules import Layout
from sharding.topology import DCN_RATE, Chip, Topology
from train.core import (
  compiler,
  diloco,
  loop,
  optim,
  run,
  setup,
  state,
  step,
  streamed,
)
from train.objectives import choice

KERNEL_SHARE = 0.5  # of the peak that a Pallas kernel reaches
# Copies of the tokens sent to experts that a layer's backward pass holds: v7x
# sends beside its products, which keeps both ends of every exchange.
_N_SENT = {"tpu7x": 5.0}
# Forward passes that splash's backward kernels are worth: of two products each,
# four for the gradients of keys and values, three for those of queries.
_BACKWARD = {"dkv": 2.0, "dq": 1.5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Of one device and one step; None where only a compiler knows.

  Attributes:
    peak_bytes: at the fullest moment.
    limit_bytes: that a program may have.
    argument_bytes: the state, the batch.
    host_bytes: in the memory of the host.
    classes: name -> bytes; they add up to the peak.
    model_flops: that the model needs.
    kernel_flops: of Pallas kernels.
    program: all else that is computed, with what remat repeats, and what travels.
    step_seconds: of the busiest resource.
    mfu: model_flops over what the device could do in that time.
    bound: MXU, HBM, ICI or DCN: the busiest.
    seconds: name of a resource -> its seconds.
    compile_seconds: None: estimated.
  """

  peak_bytes: float
  limit_bytes: float
  argument_bytes: float
  host_bytes: float
  classes: dict[str, float]
  model_flops: float
  kernel_flops: float | None
  program: hlo.Program | None
  step_seconds: float | None
  mfu: float | None
  bound: str | None
  seconds: dict[str, float]
  compile_seconds: float | None

  @property
  def fits(self) -> bool:
    """Whether the device has the memory."""
    return self.peak_bytes <= self.limit_bytes

  @property
  def temporary_bytes(self) -> float:
    """All that is not an argument: gradients and activations too."""
    return self.peak_bytes - self.argument_bytes

  @property
  def hardware_flops(self) -> float | None:
    """All that are computed."""
    return self.program and self.program.flops + self.kernel_flops


def measure(config: door.Config, topology: Topology) -> Plan:
  """Compiles the step that `train.pretrain` would run there.

  A step that does not fit is told by the compiler with its bytes; classes are
  then those of the estimate.
  """
  layout = _layout(config, meshes.make(config.mesh, topology.devices()))
  known = estimate(config, topology)
  optimizer, update = run.make_step(
    config, config.model, layout, _objective(config)
  )
  start = state.abstract(config.model, optimizer, layout)
  batch = setup.abstract_batch(config.batch, layout)
  told = compiler.options(config.model, layout.mesh)
  began = time.perf_counter()
  try:
    compiled, seconds = loop.compile_step(update, start, batch, layout, told)
  except jax.errors.JaxRuntimeError as error:
    used = _bytes_told(str(error))
    if used is None:
      raise
    return dataclasses.replace(
      known,
      peak_bytes=used,
      classes=_fill(known.classes, used),
      compile_seconds=time.perf_counter() - began,
    )
  memory = compiled.memory_analysis()
  # Arguments in the host's memory are counted in, as if they lay on the device.
  peak = memory.peak_memory_in_bytes - memory.host_argument_size_in_bytes
  program = hlo.read(compiled.as_text(), layout.mesh)
  kernel_flops = _kernel_flops(config, layout, program.kernels)
  times = _seconds(program, kernel_flops, topology, config.train.diloco)
  busiest = max(times, key=times.__getitem__)
  return dataclasses.replace(
    known,
    peak_bytes=peak,
    argument_bytes=memory.argument_size_in_bytes,
    host_bytes=memory.host_temp_size_in_bytes
    + memory.host_argument_size_in_bytes,
    classes=_fill(known.classes, peak),
    kernel_flops=kernel_flops,
    program=program,
    step_seconds=times[busiest],
    mfu=known.model_flops / (times[busiest] * topology.chip.flops),
    bound=_bound(busiest, program.flops, times[busiest], topology.chip),
    seconds=times,
    compile_seconds=seconds,
  )


def estimate(config: door.Config, topology: Topology) -> Plan:
  """The same without compiling; only a bound of the seconds."""
  layout = _layout(config, meshes.abstract(config.mesh, topology.n_devices))
  remat = dataclasses.replace(config.model, remat="none")  # of no concern here
  state_bytes = dict(
    _state_bytes(
      remat,
      config.optim,
      config.mesh,
      topology.n_devices,
      config.train.diloco is not None,
    )
  )
  # The sum over micro-batches, and what the next one adds to it.
  state_bytes["gradients"] *= 2 if config.train.n_micro > 1 else 1
  host = state_bytes.pop("host")
  has_layers = hasattr(config.model, "d_ff")  # of attention and feed-forwards
  if has_layers:
    work = _workspaces(config, layout, topology.n_devices, topology.kind)
  else:
    work = {"head": 0.0, "layer": 0.0}
  is_one_stack = has_layers and not config.batch.source_length
  saved = (_saved_bytes if is_one_stack else _traced_bytes)(config, layout)
  grads = state_bytes["gradients"]
  classes = {
    **state_bytes,
    "activations": saved,
    "temporaries": max(work["head"] - grads, work["layer"], 0.0),
  }
  arguments = classes["parameters"] + classes["optimizer"]
  peak = sum(classes.values())
  n_tokens = config.batch.size * config.batch.length / topology.n_devices
  needed = n_tokens * flops.train_per_token(
    config.model, config.batch.length, config.batch.source_length
  )
  done = needed * (4 / 3 if config.model.remat == "full" else 1)
  seconds = done / topology.chip.flops
  return Plan(
    peak_bytes=peak,
    limit_bytes=topology.chip.hbm_bytes,
    argument_bytes=arguments,
    host_bytes=host,
    classes=classes,
    model_flops=needed,
    kernel_flops=None,
    program=None,
    step_seconds=None,
    mfu=None,
    bound=None,
    seconds={"core, at least": seconds},
    compile_seconds=None,
  )


def _objective(config: door.Config) -> step.Objective:
  edges = np.zeros((2, config.model.vocab_size), bool)  # any: only shapes
  return choice.make(config.objective, config.model, edges)


def _layout(config: door.Config, mesh: rules.AnyMesh) -> Layout:
  return rules.make(mesh, *config.mesh.settings)


def _bytes_told(message: str) -> float | None:
  """What the compiler says it needs; None where it is another error."""
  told = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM", message)
  if told is None:
    return None
  return float(told.group(1)) * 2.0 ** (10 * (1 + "KMGT".index(told.group(2))))


def _fill(classes: dict[str, float], peak: float) -> dict[str, float]:
  """What is not of a known class is a temporary; there is no more than all."""
  filled, left = {}, peak
  for name, used in classes.items():
    filled[name] = left if name == "temporaries" else min(used, left)
    left -= filled[name]
  return filled


@functools.lru_cache(maxsize=1024)  # a search asks for few of them, often
def _state_bytes(
  model: families.Config,
  optimizer: optim.Config,
  mesh: meshes.Config,
  n: int,
  has_copies: bool,
) -> dict[str, float]:
  """Of the state and of one gradient, on one of n devices.

  Copies of the parameters that replicas have count as the optimizer's.
  """
  layout = rules.make(meshes.abstract(mesh, n), *mesh.settings)
  shapes, axes = families.abstract(model), families.axes(model)

  def total(tree: Any, kind: str) -> float:
    places = layout.shardings(axes, tree, kind)
    return float(
      sum(
        report.bytes_per_device(
          jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        )
        for x, place in zip(
          jax.tree.leaves(tree), jax.tree.leaves(places), strict=True
        )
      )
    )

  made = optim.make(optimizer, lambda _: 1.0, axes)
  if has_copies:
    made = state.Copies(made, layout.mesh.shape[diloco.AXIS])
  kept = jax.tree.leaves(state.abstract(model, made, layout).opt_state)
  hosted = [x for x in kept if x.sharding.memory_kind == streamed.KIND]
  host, optimizer = (
    float(sum(map(report.bytes_per_device, part))) for part in (hosted, kept)
  )
  return {
    "parameters": total(shapes, "params"),
    "optimizer": optimizer - host,
    "gradients": total(shapes, "grads"),
    "host": host,
  }


def _sizes(config: door.Config, layout: Layout) -> tuple[float, float, int]:
  """Rows and tokens of a micro-batch on a device; parts of heads and ffn."""
  table, shape = layout.rules.activations, layout.mesh.shape
  rows = config.batch.size / layout.n_batch_shards / config.train.n_micro
  n_length = math.prod(shape[a] for a in table["length"])
  n_heads = math.prod(shape[a] for a in table["act_heads"])
  return rows, rows * config.batch.length / n_length, n_heads


def _itemsize(config: door.Config) -> int:
  return jax.numpy.dtype(config.model.dtype).itemsize


def _saved_bytes(config: door.Config, layout: Layout) -> float:
  """What the layers keep for the backward pass, by the policy."""
  model = config.model
  _, n_tokens, n_parts = _sizes(config, layout)
  d_value = getattr(model, "d_value", model.d_head)
  n_kv_heads = getattr(model, "n_kv_heads", model.n_heads)
  keys = (model.n_heads + n_kv_heads) * model.d_head
  heads = (keys + n_kv_heads * d_value) / n_parts
  attended = model.n_heads * d_value / n_parts
  gates = 2 if getattr(model, "gated", True) else 1
  wide = gates * _n_copies(model) * _width(model) / n_parts
  # Between the layers, rows are split over tensor too.
  table, shape = layout.rules.activations, layout.mesh.shape
  n_more = math.prod(
    shape[a] for a in table["stream"] if a not in table["length"]
  )
  width = model.d_model / n_more
  per_token = width + {
    # Two norms keep what they read and what they give in fp32.
    "none": 2 * heads + attended + 3 * wide + 14 * width,
    "full": 0.0,
    "minimal": heads + wide + 2 * width,
    "save_qkv": heads,
    "save_attended": attended,
    "save_widened": wide,
  }.get(model.remat, 0.0)
  return model.n_layers * n_tokens * per_token * _itemsize(config)


def _traced_bytes(config: door.Config, layout: Layout) -> float:
  """What the backward pass of a micro-batch reads, but for the parameters.

  Of two rows less that of one: the parameters are in both. Heads are not split
  over tensor.
  """
  objective = _objective(config)

  def residuals(n_rows: int) -> int:
    batch = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((n_rows, *x.shape[1:]), x.dtype),
      config.batch.blank(1),
    )

    def backward(params, batch, key):
      def loss(params):
        total, weight, _ = objective(params, batch, key)
        return total, weight

      return jax.vjp(loss, params, has_aux=True)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    params = families.abstract(config.model)
    read = jax.eval_shape(backward, params, batch, key)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(read))

  rows, _, _ = _sizes(config, layout)
  return rows * (residuals(2) - residuals(1))


def _workspaces(
  config: door.Config, layout: Layout, n_devices: int, chip: str
) -> dict[str, float]:
  """Bytes at the head, and in the backward pass of a layer."""
  model, size = config.model, _itemsize(config)
  rows, n_tokens, n_parts = _sizes(config, layout)
  of_one = _gathered(
    dataclasses.replace(model, remat="none"), config.mesh, n_devices
  )
  n_copies = _n_copies(model)
  vocab = model.vocab_size / n_parts
  chunk = min(config.objective.chunk_tokens, config.batch.length)
  n_chunks = -(-config.batch.length // chunk)
  # While chunks go by, logits and their gradient; then the head's is rounded.
  logits, rounded = rows * chunk * (4 + size), model.d_model * size
  head = model.d_model * (size + (4 if n_chunks > 1 else 0))
  head = vocab * (head + max(logits, rounded))
  wide = n_copies * _width(model) / n_parts
  sent = n_copies * model.d_model
  gathered = of_one * size  # and what has come of the next layer
  # Experts' widened tokens and gradients are let go of one after the other.
  attended = _attention_width(model) / n_parts
  if hasattr(model, "experts"):
    n_sent = _N_SENT.get(chip, 0.5)
    elements = 4 * wide + 1.5 * attended + n_sent * sent + 2 * model.d_model
    layer = 2 * gathered
  else:
    elements = 4 * wide + 1.5 * attended + 4.5 * model.d_model
    layer = 1.5 * gathered
  if getattr(model, "ahead", False):
    # What the layer beside the stack leaves: gradients of its experts are made
    # last; its weights and the head's are gathered for all micro-batches.
    elements += wide + sent
    layer += size * (of_one + vocab * model.d_model)
  layer += n_tokens * size * elements
  return {"head": head, "layer": layer}


def _attention_width(model: families.Config) -> int:
  """Queries, keys, values and what they come to, of a token in all heads."""
  n_kv_heads = getattr(model, "n_kv_heads", model.n_heads)
  d_value = getattr(model, "d_value", model.d_head)
  return (model.n_heads + n_kv_heads) * (model.d_head + d_value)


def _n_copies(model: families.Config) -> float:
  """Feed-forwards that a token goes through in a layer, with their room."""
  e = getattr(model, "experts", None)
  if e is None:
    return 1.0
  return e.n_active * (e.capacity_factor or 1.0) + getattr(e, "n_shared", 0)


def _width(model: families.Config) -> int:
  return getattr(model, "d_expert", model.d_ff)


@functools.lru_cache(maxsize=1024)
def _gathered(model: families.Config, mesh: meshes.Config, n: int) -> float:
  """Parameters of one layer as one of n devices gathers them.

  Experts and parts over tensor are its own.
  """
  layout = rules.make(meshes.abstract(mesh, n), *mesh.settings)
  shapes, axes = families.abstract(model), families.axes(model)
  places = jax.tree.leaves(layout.shardings(axes, shapes, "params"))
  names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  used = 0.0
  for x, place, dims in zip(
    jax.tree.leaves(shapes), places, names, strict=True
  ):
    if "layers" not in dims:
      continue
    n_own = math.prod(
      layout.mesh.shape[axis]
      for name, split in zip(dims, place.spec, strict=False)
      for axis in ((split,) if isinstance(split, str) else split or ())
      if axis == "tensor" or name == "experts"
    )
    used += math.prod(x.shape) / x.shape[0] / n_own
  return used


def _kernel_flops(
  config: door.Config, layout: Layout, kernels: dict[str, int]
) -> float:
  """Of the attention kernels, whose FLOPs no compiler tells."""
  model, length = config.model, config.batch.length
  matmuls = 2 * flops.n_matmul_params(model)
  of_attention = flops.forward_per_token(model, length) - matmuls
  _, n_tokens, n_parts = _sizes(config, layout)
  one = of_attention * n_tokens / model.n_layers / n_parts
  return sum(
    n * one * next((f for k, f in _BACKWARD.items() if k in name), 1.0)
    for name, n in kernels.items()
    if "splash" in name
  )


def _seconds(
  program: hlo.Program,
  kernel_flops: float,
  topology: Topology,
  rounds: diloco.Config | None,
) -> dict[str, float]:
  chip = topology.chip
  core = program.cycles / chip.hertz
  core += kernel_flops / (KERNEL_SHARE * chip.flops)
  is_far = lambda c: topology.n_slices > 1 and "replica" in c.axes  # noqa: E731
  near = sum(c.wire_bytes for c in program.collectives if not is_far(c))
  far = sum(c.wire_bytes for c in program.collectives if is_far(c))
  return {
    "core": core,
    "ICI": near / (2 * chip.ici_rate),
    # Replicas that train alone meet once a round: the mean of its steps.
    "DCN": far / DCN_RATE / (rounds.round_steps if rounds else 1),
  }


def _bound(busiest: str, hardware: float, seconds: float, chip: Chip) -> str:
  if busiest != "core":
    return busiest
  return "MXU" if hardware / chip.flops > seconds / 2 else "HBM"
