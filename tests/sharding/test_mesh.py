"""The mesh: sizes that fit the devices, and messages where they do not."""

import jax
import pytest

from sharding import mesh


def test_minus_one_takes_the_devices_that_are_left():
  made = mesh.make(mesh.Config(data=-1, tensor=2))
  assert dict(made.shape) == {**dict.fromkeys(mesh.AXES, 1), "data": 4} | {
    "tensor": 2
  }
  assert made.devices.size == jax.device_count() == 8


def test_tensor_neighbours_are_neighbouring_devices():
  made = mesh.make(mesh.Config(data=4, tensor=2))
  ids = [[d.id for d in row] for row in made.devices.reshape(4, 2)]
  assert ids == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
  ("sizes", "said"),
  [
    (dict(data=-1, tensor=3), "does not divide 8 devices"),
    (dict(data=4), "needs 4 devices and there are 8"),
    (dict(data=16), "needs 16 devices"),
  ],
)
def test_a_mesh_that_does_not_fit_says_so(sizes, said):
  with pytest.raises(ValueError, match=said):
    mesh.make(mesh.Config(**sizes))


@pytest.mark.parametrize(
  "setting", [dict(context_exchange="gather"), dict(context_order="zigzag")]
)
def test_what_is_said_of_rows_that_are_not_split_is_refused(setting):
  mesh.Config(context=2, **setting)
  with pytest.raises(ValueError, match="says nothing at context=1"):
    mesh.Config(**setting)


@pytest.mark.parametrize("sizes", [dict(fsdp=0), dict(data=-1, fsdp=-1)])
def test_impossible_sizes_are_refused_in_the_config(sizes):
  with pytest.raises(ValueError, match="-1"):
    mesh.Config(**sizes)
