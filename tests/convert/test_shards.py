"""safetensors: what is written comes back; what is damaged or hostile does not.

Z5: no name leads out of the folder. Z6: nothing is unpickled.
"""

import json
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from convert import shards

RNG = np.random.default_rng(0)
TENSORS = {
  "a": np.float32(RNG.normal(size=(3, 5))),
  "b": RNG.normal(size=(7,)).astype(ml_dtypes.bfloat16),
  "c": np.float16(RNG.normal(size=(2, 2, 2))),
  "d": np.float32(RNG.normal(size=(4, 4))),
}


def write(folder, max_bytes=10**9):
  wanted = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in TENSORS.items()
  }
  return shards.write(epath.Path(folder), wanted, max_bytes, TENSORS.get)


@pytest.fixture
def file(tmp_path):
  write(tmp_path)
  return epath.Path(tmp_path / shards.ONE)


def with_header(file, entries, data=b"\0" * 16):
  head = json.dumps(entries).encode() if isinstance(entries, dict) else entries
  file.write_bytes(struct.pack("<Q", len(head)) + head + data)


@pytest.mark.parametrize("max_bytes", [10**9, 80, 1])
def test_tensors_come_back_from_one_file_or_many(tmp_path, max_bytes):
  names = write(tmp_path, max_bytes)
  assert len(names) == {10**9: 1, 80: 3, 1: 5}[max_bytes]  # the index is one
  found = shards.find(epath.Path(tmp_path))
  assert found.keys() == TENSORS.keys()
  for name, x in TENSORS.items():
    np.testing.assert_array_equal(found[name].read(), x)
    assert found[name].dtype == x.dtype


def test_the_library_reads_what_is_written(tmp_path):
  write(tmp_path)
  with safetensors.safe_open(tmp_path / shards.ONE, "numpy") as opened:
    assert opened.metadata() == {"format": "pt"}
    for name in ("a", "c", "d"):
      np.testing.assert_array_equal(opened.get_tensor(name), TENSORS[name])


def test_what_the_library_writes_is_read(tmp_path):
  safetensors.numpy.save_file(
    {k: TENSORS[k] for k in "acd"}, tmp_path / shards.ONE
  )
  found = shards.find(epath.Path(tmp_path))
  for name in "acd":
    np.testing.assert_array_equal(found[name].read(), TENSORS[name])


def test_every_cut_is_found(file):
  whole = file.read_bytes()
  for n in range(len(whole)):
    file.write_bytes(whole[:n])
    with pytest.raises(ValueError):
      shards.tensors(file)
  file.write_bytes(whole + b"\0")
  with pytest.raises(ValueError, match="behind the last tensor"):
    shards.tensors(file)


def test_a_damaged_header_never_passes_as_other_sizes(file):
  whole = file.read_bytes()
  (n,) = struct.unpack("<Q", whole[:8])
  right = {t.start: t.n_bytes for t in shards.tensors(file).values()}
  rng = np.random.default_rng(1)
  n_refused = 0
  for _ in range(400):
    damaged = bytearray(whole)
    damaged[rng.integers(0, 8 + n)] ^= 1 << rng.integers(8)
    file.write_bytes(bytes(damaged))
    try:
      found = shards.tensors(file)
    except ValueError:
      n_refused += 1
    else:  # another letter of a name, or another type as wide
      assert {t.start: t.n_bytes for t in found.values()} == right
  assert n_refused > 200


@pytest.mark.parametrize(
  "entries, words",
  [
    (b"[]", "damaged header"),
    (b"{" * 9, "damaged header"),
    (
      {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}},
      "F8_E4",
    ),
    ({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, "sizes"),
    ({"a": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}}, "sizes"),
    (
      {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}},
      "16 bytes",
    ),
    ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, "at byte"),
    ({"a": {"shape": [2], "data_offsets": [8, 16]}}, "dtype"),
    (
      b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
      b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
      "stands twice",
    ),
    (
      {
        "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
      },
      "at byte",
    ),
  ],
)
def test_a_header_that_lies_is_refused(file, entries, words):
  with_header(file, entries)
  with pytest.raises(ValueError, match=words):
    shards.tensors(file)


@pytest.mark.parametrize(
  "name", ["../x.safetensors", "/etc/x", "a/b.safetensors", "..", "a\\b"]
)
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, name):
  """Z5."""
  write(tmp_path, 1)
  index = json.loads((tmp_path / shards.INDEX).read_text())
  index["weight_map"]["a"] = name
  (tmp_path / shards.INDEX).write_text(json.dumps(index))
  with pytest.raises(ValueError, match="nowhere else"):
    shards.find(epath.Path(tmp_path))


def test_an_index_and_its_files_agree(tmp_path):
  write(tmp_path, 1)
  place = tmp_path / shards.INDEX
  index = json.loads(place.read_text())
  gone = index["weight_map"].pop("a")
  place.write_text(json.dumps(index | {"weight_map": {"x": gone}}))
  with pytest.raises(ValueError, match="differ in a, x"):
    shards.find(epath.Path(tmp_path))
  (tmp_path / gone).unlink()
  with pytest.raises(ValueError, match="which is not there"):
    shards.find(epath.Path(tmp_path))


def test_a_pickle_is_not_opened(tmp_path):
  """Z6."""
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
  with pytest.raises(ValueError, match="a pickle: to open it would run"):
    shards.find(epath.Path(tmp_path))
