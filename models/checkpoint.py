"""The directory that every verb takes and leaves, from the reader's side.

  config.json    the resolved config; its section `model` is the architecture
  tokenizer.*    what the text was read with
  params/        the weights (Orbax)
  card.json      git revision, command, parent checkpoint, metrics
  manifest.json  size and sha256 of every file above; it is written last, so a
                 directory without one is no checkpoint
  state/ data/   while training: optimizer, step, place in the data

A run keeps several, as RUN/checkpoints/STEP.
"""

import hashlib
import json
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax import numpy as jnp

from configs import door
from models import families
from sharding.rules import Layout

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 22


def steps(workdir: epath.Path) -> list[int]:
  """Steps of the complete checkpoints of a run, oldest first."""
  folder = workdir / "checkpoints"
  found = folder.iterdir() if folder.exists() else []
  return sorted(int(p.name) for p in found if (p / MANIFEST).exists())


def find(path: epath.Path) -> epath.Path:
  """The checkpoint that a path means: itself, or the newest of a run.

  Raises:
    ValueError: there is none.
  """
  if (path / MANIFEST).exists():
    return path
  found = steps(path)
  if not found:
    raise ValueError(
      f"{path} holds no checkpoint: neither {MANIFEST} nor checkpoints/STEP. "
      "Give the --workdir of a run that has saved one, or a checkpoint."
    )
  return path / "checkpoints" / str(found[-1])


def seal(path: epath.Path) -> None:
  """Writes the manifest: from now on the directory is a checkpoint."""
  files = {
    str(file.relative_to(path)): _describe(file)
    for file in sorted(_files(path))
  }
  text = json.dumps({"format": 1, "files": files}, indent=1)
  part = path / f"{MANIFEST}.part"
  part.write_text(text)
  part.rename(path / MANIFEST)


def verify(path: epath.Path, *, part: str = "") -> str | None:
  """What is wrong with a checkpoint, in one line; None where it is whole.

  Args:
    path: the checkpoint.
    part: how the names of the files begin that are looked at.
  """
  try:
    files = json.loads((path / MANIFEST).read_text())["files"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    return f"{MANIFEST} cannot be read: {error}"
  for name, wanted in files.items():
    if not name.startswith(part):
      continue
    if not (path / name).exists():
      return f"{name} is missing"
    found = _describe(path / name)
    if found["bytes"] != wanted["bytes"]:
      return f"{name} has {found['bytes']} bytes, not {wanted['bytes']}"
    if found["sha256"] != wanted["sha256"]:
      return f"{name} has another sha256 than when it was written"
  return None


def _files(path: epath.Path) -> list[epath.Path]:
  found = []
  for child in path.iterdir():
    if child.is_dir():
      found += _files(child)
    elif not child.name.startswith(MANIFEST):
      found.append(child)
  return found


def _describe(file: epath.Path) -> dict[str, Any]:
  digest, size = hashlib.sha256(), 0
  with file.open("rb") as stream:
    while chunk := stream.read(_CHUNK_BYTES):
      digest.update(chunk)
      size += len(chunk)
  return {"bytes": size, "sha256": digest.hexdigest()}


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
  if problem := verify(path):
    raise ValueError(f"{path} is damaged: {problem}. Take an older checkpoint.")
  model = config(path)
  shapes = families.abstract(model)
  if layout is None:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(lambda _: one, shapes)
  else:
    placed = layout.shardings(families.axes(model), shapes)
  wanted = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=s),
    shapes,
    placed,
  )
  return model, restore(path / "params", wanted)


def absolute(path: epath.Path) -> epath.Path:
  """The path as Orbax wants it; addresses such as gs:// are so already."""
  return path if "://" in str(path) else epath.Path(os.path.abspath(path))


def restore(path: epath.Path, wanted: Any) -> Any:
  """Reads a tree of arrays straight to where `wanted` says that they live.

  Args:
    path: a folder that Orbax wrote.
    wanted: ShapeDtypeStructs with shardings.

  Raises:
    ValueError: lists leaves that are missing, unexpected or of another shape.
  """
  path, reader = absolute(path), ocp.PyTreeCheckpointHandler()
  _compare(path, reader.metadata(path).tree, wanted)
  how = ocp.args.PyTreeRestore(
    item=wanted,
    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
  )
  return reader.restore(path, args=how)


def arrays(path: epath.Path) -> dict[str, np.ndarray]:
  """Reads every leaf of a folder that Orbax wrote to the host, by its path."""
  path, reader = absolute(path), ocp.PyTreeCheckpointHandler()
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  how = jax.tree.map(lambda _: as_numpy, reader.metadata(path).tree)
  tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=how))
  return _by_path(tree)


def _compare(path: epath.Path, saved: Any, wanted: Any) -> None:
  there, here = _shapes(saved), _shapes(wanted)
  missing = sorted(here.keys() - there.keys())
  extra = sorted(there.keys() - here.keys())
  other = [
    f"{leaf} {there[leaf]} there, {here[leaf]} here"
    for leaf in sorted(here.keys() & there.keys())
    if there[leaf] != here[leaf]
  ]
  if not (missing or extra or other):
    return
  lines = [f"{path} does not fit the model of this config:"]
  for what, leaves in (
    ("missing there", missing),
    ("only there", extra),
    ("other shapes", other),
  ):
    if leaves:
      more = f" and {len(leaves) - 3} more" if len(leaves) > 3 else ""
      lines.append(f"  {what}: {'; '.join(leaves[:3])}{more}")
  lines.append("  use the config.json beside it, or another --workdir.")
  raise ValueError("\n".join(lines))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {name: tuple(leaf.shape) for name, leaf in _by_path(tree).items()}


def _by_path(tree: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
