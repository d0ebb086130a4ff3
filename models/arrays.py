"""A tree of arrays in a folder of Orbax's kind, within little memory.

Orbax reads all leaves at once and copies each: 1.8 times the bytes of a state
of 300 MB. Here one leaf after the other is read by TensorStore into where it
will live: 1.1 times.
"""

import json
import math
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

# Chunks are read by four threads; with Orbax's 128 all would be in memory.
_CONTEXT = {
  "file_io_concurrency": {"limit": 4},
  "cache_pool": {"total_bytes_limit": 1 << 20},  # of the index
}
_ALIGNMENT = 64  # bytes; the CPU's devices take such an array without a copy


def absolute(path: epath.Path) -> epath.Path:
  """The path as Orbax wants it; addresses such as gs:// are so already."""
  return path if "://" in str(path) else epath.Path(os.path.abspath(path))


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their paths: layers/mlp/up."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def describe(path: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of the leaves of a folder, by their paths."""
  tree = ocp.PyTreeCheckpointHandler().metadata(absolute(path)).tree
  return {
    name: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)
    for name, leaf in by_path(tree).items()
  }


def read(
  path: epath.Path, names: Iterable[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
  """Reads leaf after leaf to the host; None: all of them, by name."""
  context = ts.Context(_CONTEXT)
  for name in sorted(describe(path)) if names is None else names:
    store = _open(path, name, context)
    yield name, _copy(store, store.dtype.numpy_dtype)


class Source:
  """The leaves of a folder, read part by part."""

  def __init__(self, path: epath.Path):
    self._path, self._context = path, ts.Context(_CONTEXT)
    # Where a chunk holds many parts, it is kept until they are read.
    kept = {"cache_pool": {"total_bytes_limit": 256 << 20}}
    self._keeping = ts.Context(_CONTEXT | kept)
    self._stores: dict[str, ts.TensorStore] = {}
    self.leaves = describe(path)

  def read(self, name: str, index: tuple[int, ...]) -> np.ndarray:
    """The part of a leaf under some first indices, in its own type."""
    if name not in self._stores:
      store = _open(self._path, name, self._context)
      if math.prod(store.chunk_layout.read_chunk.shape[: len(index)]) > 1:
        store = _open(self._path, name, self._keeping)
      self._stores[name] = store
    store = self._stores[name][index]
    return _copy(store, store.dtype.numpy_dtype)


def restore(
  path: epath.Path,
  wanted: Any,
  *,
  casts: bool = False,
  spare: Container[str] = (),
) -> Any:
  """Reads a tree straight to where `wanted` says that it lives.

  Args:
    path: a folder that Orbax wrote.
    wanted: ShapeDtypeStructs with shardings.
    casts: whether a leaf may be of another type there.
    spare: paths of leaves there that nobody wants.

  Raises:
    ValueError: lists leaves that are missing, unexpected, of another shape or
      of another type.
  """
  there = {n: leaf for n, leaf in describe(path).items() if n not in spare}
  _compare(path, there, by_path(wanted), casts)
  context = ts.Context(_CONTEXT)

  def place(keys, leaf):
    name = jax.tree_util.keystr(keys, simple=True, separator="/")
    store = _open(path, name, context)
    pieces: dict[str, np.ndarray] = {}  # devices may hold the same one

    def piece(index):
      if str(index) not in pieces:
        pieces[str(index)] = _copy(store[index], leaf.dtype)
      return pieces[str(index)]

    return jax.block_until_ready(
      jax.make_array_from_callback(leaf.shape, leaf.sharding, piece)
    )

  return jax.tree.map_with_path(place, wanted)


def _open(path: epath.Path, name: str, context: ts.Context) -> ts.TensorStore:
  spec = _spec(path, name)
  return ts.open(spec, open=True, read=True, context=context).result()


def _spec(path: epath.Path, name: str) -> dict[str, Any]:
  path = str(absolute(path))
  base = path if "://" in path else {"driver": "file", "path": f"{path}/"}
  key = name.replace("/", ".")
  return {
    "driver": "zarr",
    "kvstore": {"driver": "ocdbt", "base": base, "path": f"{key}/"},
  }


def _copy(store: ts.TensorStore, dtype: np.dtype) -> np.ndarray:
  n_bytes = math.prod(store.shape) * np.dtype(dtype).itemsize
  raw = np.empty(n_bytes + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  out = raw[start : start + n_bytes].view(dtype).reshape(store.shape)
  ts.array(out).write(ts.cast(store, out.dtype)).result()
  return out


def _compare(
  path: epath.Path,
  there: dict[str, jax.ShapeDtypeStruct],
  here: dict[str, jax.ShapeDtypeStruct],
  casts: bool,
) -> None:
  both = sorted(here.keys() & there.keys())
  differences = {
    "missing there": sorted(here.keys() - there.keys()),
    "only there": sorted(there.keys() - here.keys()),
    "other shapes": [
      f"{name} {there[name].shape} there, {here[name].shape} here"
      for name in both
      if there[name].shape != here[name].shape
    ],
    "other types": [
      f"{name} {there[name].dtype} there, {here[name].dtype} here"
      for name in both
      if there[name].dtype != here[name].dtype and not casts
    ],
  }
  if not any(differences.values()):
    return
  lines = [
    f"{path} does not fit the model of this config; use the config.json beside "
    "it, or another --workdir:"
  ]
  for what, leaves in differences.items():
    if leaves:
      more = f" and {len(leaves) - 3} more" if len(leaves) > 3 else ""
      lines.append(f"  {what}: {'; '.join(leaves[:3])}{more}")
  raise ValueError("\n".join(lines))


class Sink:
  """A folder like Orbax's, filled part by part; nothing is held in memory.

  Args:
    path: a folder that is there, and empty.
    leaves: what will be written, by path.
    n_listed: how many leading dimensions of a leaf its parts are given by;
      each part then is a chunk of its own, or several.
  """

  def __init__(
    self,
    path: epath.Path,
    leaves: Mapping[str, jax.ShapeDtypeStruct],
    n_listed: Mapping[str, int],
  ):
    # A manifest sees all on the disk; to wait at each part took 20 times as long.
    self._context = ts.Context(_CONTEXT | {"file_io_sync": False})
    self._stores = {}
    for name, leaf in leaves.items():
      spec = _spec(path, name)
      spec["metadata"] = {
        "shape": leaf.shape,
        "chunks": _chunks(leaf, n_listed.get(name, 0)),
        "dtype": _ZARR.get(leaf.dtype.name, leaf.dtype.str),
        "compressor": None,
        "fill_value": None,
      }
      store = ts.open(spec, create=True, context=self._context)
      self._stores[name] = store.result()
    (path / "_METADATA").write_text(json.dumps(_metadata(leaves)))

  def write(self, name: str, index: tuple[int, ...], part: np.ndarray) -> None:
    """Writes a part of a leaf, cast to its type."""
    store = self._stores[name][index]
    store.write(part.astype(store.dtype.numpy_dtype, copy=False)).result()


_ZARR = {"bfloat16": "bfloat16"}  # numpy has no word for it
_CHUNK_BYTES = 64 << 20  # so that a shard of a mesh reads little else


def _chunks(leaf: jax.ShapeDtypeStruct, n_listed: int) -> list[int]:
  chunks = [1] * n_listed + list(leaf.shape[n_listed:])
  while math.prod(chunks) * leaf.dtype.itemsize > _CHUNK_BYTES:
    longest = chunks.index(max(chunks))
    chunks[longest] = -(-chunks[longest] // 2)
  return chunks


def _metadata(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
  """What Orbax 0.12 keeps beside the arrays: the tree."""
  entries = {}
  for name, leaf in leaves.items():
    keys = tuple(name.split("/"))
    entries[str(keys)] = {
      "key_metadata": [{"key": key, "key_type": 2} for key in keys],
      "value_metadata": {
        "value_type": "jax.Array",
        "skip_deserialize": False,
        "write_shape": leaf.shape,
      },
    }
  return {
    "tree_metadata": entries,
    "use_ocdbt": True,
    "use_zarr3": False,
    "store_array_data_equal_to_fill_value": True,
    "custom_metadata": None,
  }
