"""The directory that every verb takes and leaves, from the reader's side.

  config.json    the resolved config; its section `model` is the architecture
  tokenizer.*    what the text was read with
  params/        the weights (Orbax)
  card.json      git revision, command, parent checkpoint, metrics
  state/ data/   while training: optimizer, step, place in the data
  manifest.json  size and sha256 of every file above; it is written last, so a
                 directory without one is no checkpoint

A run keeps several, as RUN/checkpoints/STEP. An adapter's params/ are its own
leaves alone: its config has the sections `adapter` and `base`, and its card the
digest of the base's manifest.
"""

import functools
import json
from typing import Any

import jax
from etils import epath
from jax import numpy as jnp

from configs import door
from models import adapters, arrays, families, manifest
from models.layers import stack
from sharding.rules import Layout

# What the config.json of an adapter has of it.
ADAPTED = {
  "model": families.FAMILIES,
  "base": adapters.Base,
  "adapter": adapters.CONFIGS,
}


def steps(workdir: epath.Path) -> list[int]:
  """Steps of the complete checkpoints of a run, oldest first."""
  folder = workdir / "checkpoints"
  found = folder.iterdir() if folder.exists() else []
  return sorted(
    int(path.name)
    for path in found
    if path.name.isdigit() and (path / manifest.NAME).exists()
  )


def find(path: epath.Path) -> epath.Path:
  """The checkpoint that a path means: itself, or the newest of a run.

  Raises:
    ValueError: there is none.
  """
  if (path / manifest.NAME).exists():
    return path
  found = steps(path)
  if not found:
    raise ValueError(
      f"{path} holds no checkpoint: neither {manifest.NAME} nor "
      "checkpoints/STEP. Give the --workdir of a run that has saved one, or a "
      "checkpoint."
    )
  return path / "checkpoints" / str(found[-1])


def config(path: epath.Path) -> families.Config:
  """The architecture of a checkpoint."""
  return door.load(path / "config.json", {"model": families.FAMILIES}).model


def load(
  path: epath.Path, layout: Layout | None = None, dtype: str = "float32"
) -> tuple[families.Config, Any]:
  """The architecture and the parameters of a checkpoint or of a run's newest.

  Args:
    path: a checkpoint, or the workdir of a run.
    layout: where the parameters shall live; None: on the first device.
    dtype: of the parameters in memory; on disk they keep their own.

  Raises:
    ValueError: no checkpoint, a damaged one, or one of another shape.
  """
  path = find(path)
  verify(path)
  settings = door.read(path / "config.json")
  if "adapter" in settings:
    return _with_adapter(path, settings, layout, dtype)
  model = config(path)
  wanted = places(model, layout, dtype)
  return model, arrays.restore(path / "params", wanted, casts=True)


def _with_adapter(
  path: epath.Path,
  settings: dict[str, Any],
  layout: Layout | None,
  dtype: str,
) -> tuple[families.Config, Any]:
  """The base that an adapter names, with the adapter in its places."""
  c = door.build(settings, ADAPTED)
  base, said = (
    epath.Path(c.base.path),
    json.loads((path / "card.json").read_text()),
  )
  if not (base / manifest.NAME).exists():
    raise ValueError(
      f"{path} is an adapter of {base}, and that is not there: put the base "
      f"back, whose manifest has the sha256 {said['parent_sha256'][:12]}."
    )
  if (found := manifest.digest(base)) != said["parent_sha256"]:
    raise ValueError(
      f"{path} is an adapter of {base} with the manifest "
      f"{said['parent_sha256'][:12]}, and that has {found[:12]} now: put the "
      "base back as it was."
    )
  there, params = load(base, layout, dtype)
  if getattr(there, "scanned", False) and not c.model.scanned:
    params = stack.apart(params)
  # The base may lack the heads that the adapter brings, or have others.
  axes = adapters.beneath(c.model, families.axes(c.model))
  params = {name: params[name] for name in axes}
  own, own_axes = adapters.own(c.adapter, c.model)
  wanted = _placed(own, own_axes, layout, "float32")
  own = arrays.restore(path / "params", wanted)
  hold = functools.partial(adapters.hold, c.base, axes)
  held_axes = adapters.held_axes(c.base, axes)
  held = _shardings(jax.eval_shape(hold, params), held_axes, layout)
  held = jax.jit(hold, out_shardings=held)(params)
  return c.model, adapters.join(c.adapter, c.model, own, held, None)


def verify(path: epath.Path) -> None:
  """Checks every file of a checkpoint against its manifest.

  Raises:
    ValueError: one is not as it was written.
  """
  if problem := manifest.verify(path):
    raise ValueError(f"{path} is damaged: {problem}. Take an older checkpoint.")


def places(
  model: families.Config, layout: Layout | None = None, dtype: str = "float32"
) -> Any:
  """Shapes, types and shardings of a model's parameters, as `load` gives them.

  Args:
    model: whose they are.
    layout: where they shall live; None: on the first device.
    dtype: in memory.
  """
  return _placed(families.abstract(model), families.axes(model), layout, dtype)


def _shardings(shapes: Any, axes: Any, layout: Layout | None) -> Any:
  if layout is None:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: one, shapes)
  return layout.shardings(axes, shapes)


def _placed(shapes: Any, axes: Any, layout: Layout | None, dtype: str) -> Any:
  placed = _shardings(shapes, axes, layout)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=s),
    shapes,
    placed,
  )
