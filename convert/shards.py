"""safetensors files, one or several with an index: tensor by tensor.

The library takes a file with four of five flipped bits as it is. Here the
header is checked before a byte of it is believed: tensors lie end to end, have
the bytes of their shapes, and fill the file. Nothing is unpickled, and no name
in an index leads out of its folder.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from etils import epath

from convert import header

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_LONGEST_HEADER = 100 << 20  # bytes; the library's limit


class Tensor(NamedTuple):
  """Where a tensor lies."""

  file: epath.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int  # byte in the file

  @property
  def n_bytes(self) -> int:
    """On the disk."""
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self) -> np.ndarray:
    """The numbers, in memory of their own."""
    with self.file.open("rb") as stream:
      stream.seek(self.start)
      raw = stream.read(self.n_bytes)
    return np.frombuffer(raw, self.dtype).reshape(self.shape)


def find(folder: epath.Path) -> dict[str, Tensor]:
  """The tensors of a folder by their names.

  Raises:
    ValueError: there are none, or a file is not as it says.
  """
  if (folder / INDEX).exists():
    return _indexed(folder)
  if (folder / ONE).exists():
    return tensors(folder / ONE)
  pickles = [p.name for p in folder.glob("*.bin")] if folder.exists() else []
  if pickles:
    raise ValueError(
      f"{folder} has its weights in {min(pickles)}, a pickle: to open it would "
      "run whatever code it holds. Take the safetensors of the same model, or "
      "make them where you trust it: model.save_pretrained(FOLDER)."
    )
  raise ValueError(f"{folder} holds neither {ONE} nor {INDEX}.")


def _indexed(folder: epath.Path) -> dict[str, Tensor]:
  place = folder / INDEX
  try:
    listed = dict(json.loads(place.read_text())["weight_map"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{place} is no index: {error!r}.") from error
  found = {}
  for name in sorted({str(file) for file in listed.values()}):
    if epath.Path(name).name != name or "\\" in name or name.startswith("."):
      raise ValueError(
        f"{place} names {name!r}: its files lie beside it, and nowhere else."
      )
    if not (folder / name).exists():
      raise ValueError(f"{place} names {name}, which is not there.")
    inside = tensors(folder / name)
    wrong = {t for t, file in listed.items() if file == name} ^ inside.keys()
    if wrong:
      raise ValueError(
        f"{place} and {name} differ in {header.few(wrong)}: fetch both anew."
      )
    found |= inside
  return found


def tensors(file: epath.Path) -> dict[str, Tensor]:
  """The tensors of one file, in the order of their bytes.

  Raises:
    ValueError: it is cut, or not as its header says.
  """
  size = file.stat().length
  with file.open("rb") as stream:
    head = stream.read(8)
    n = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
    if not 2 <= n <= min(size - 8, _LONGEST_HEADER):
      raise ValueError(
        f"{file} is no safetensors file, or is cut: {size} bytes."
      )
    raw = stream.read(n)
  try:
    entries = json.loads(raw, object_pairs_hook=_unique)
    entries.pop("__metadata__", None)
    found = {name: _tensor(file, 8 + n, e) for name, e in entries.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{file} has a damaged header: {error}.") from error
  found = dict(sorted(found.items(), key=lambda item: item[1][3:]))
  header.lie_end_to_end(
    file,
    [(name, t.start, t.n_bytes) for name, t in found.items()],
    first=8 + n,
    size=size,
  )
  return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  if len(dict(pairs)) < len(pairs):
    raise ValueError("a name stands twice")
  return dict(pairs)


def _tensor(file: epath.Path, base: int, entry: dict[str, Any]) -> Tensor:
  if entry["dtype"] not in _DTYPES:
    raise ValueError(
      f"numbers of type {entry['dtype']}, where there are {', '.join(_DTYPES)}"
    )
  shape, (start, stop) = entry["shape"], entry["data_offsets"]
  numbers = [*shape, start, stop]
  if any(type(x) is not int or not 0 <= x < 2**48 for x in numbers):
    raise ValueError(f"no sizes: {numbers}")
  tensor = Tensor(file, _DTYPES[entry["dtype"]], tuple(shape), base + start)
  if tensor.n_bytes != stop - start:
    raise ValueError(f"{stop - start} bytes for a tensor of {tensor.n_bytes}")
  return tensor


def write(
  folder: epath.Path,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  max_bytes: int,
  read: Callable[[str], np.ndarray],
) -> list[str]:
  """Writes tensors in their order, as many to a file as its limit allows.

  Args:
    folder: is there, and has no weights yet.
    wanted: shapes and types, by name.
    max_bytes: of one file, if it does not hold a single tensor.
    read: gives a tensor by its name; asked once for each, in order.

  Returns:
    The names of the files.
  """
  groups: list[dict[str, jax.ShapeDtypeStruct]] = [{}]
  used = 0
  for name, tensor in wanted.items():
    n_bytes = tensor.size * tensor.dtype.itemsize
    if groups[-1] and used + n_bytes > max_bytes:
      groups.append({})
      used = 0
    groups[-1][name] = tensor
    used += n_bytes
  names = [ONE]
  if len(groups) > 1:
    n = len(groups)
    names = [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
  total, places = 0, {}
  for file, group in zip(names, groups, strict=True):
    total += _write_one(folder / file, group, read)
    places |= dict.fromkeys(group, file)
  if len(names) > 1:
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2))
    return [*names, INDEX]
  return names


def _write_one(
  file: epath.Path,
  group: Mapping[str, jax.ShapeDtypeStruct],
  read: Callable[[str], np.ndarray],
) -> int:
  kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
  entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  stop = 0
  for name, tensor in group.items():
    start, stop = stop, stop + tensor.size * tensor.dtype.itemsize
    entries[name] = {
      "dtype": kinds[tensor.dtype],
      "shape": list(tensor.shape),
      "data_offsets": [start, stop],
    }
  head = json.dumps(entries, separators=(",", ":")).encode()
  head += b" " * (-len(head) % 8)  # so that numbers lie on whole words
  with file.open("wb") as stream:
    stream.write(struct.pack("<Q", len(head)) + head)
    for name, tensor in group.items():
      x = np.ascontiguousarray(read(name), tensor.dtype)
      assert x.shape == tensor.shape, (name, x.shape, tensor.shape)
      stream.write(x.reshape(-1).view(np.uint8).data)
  return stop


def digest(file: epath.Path) -> str:
  """sha256 of a file, in hex."""
  with file.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
