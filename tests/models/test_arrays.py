"""Arrays come back as Orbax itself reads them, wherever they shall live (C11)."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax import numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from models import arrays
from sharding import mesh

MESH = mesh.make(mesh.Config(data=2, fsdp=4))
SPECS = [P(), P("fsdp"), P(None, "fsdp"), P(("data", "fsdp"), None)]


@pytest.fixture(scope="module")
def tree():
  """Leaves of all types, and a nesting that optimizers have."""
  rng = np.random.default_rng(0)
  return {
    "a": {"kernel": jnp.asarray(rng.normal(size=(16, 24)), jnp.float32)},
    "moments": [
      jnp.asarray(rng.normal(size=(8, 8)), jnp.bfloat16),
      (jnp.arange(24, dtype=jnp.int32).reshape(8, 3), jnp.zeros((1, 4))),
    ],
    "count": jnp.int32(7),
    "flags": jnp.array([True, False]),
  }


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "zstd"])
def folder(request, tree, tmp_path_factory):
  path = epath.Path(tmp_path_factory.mktemp("saved")) / "with space" / "tree"
  handler = ocp.PyTreeCheckpointHandler(use_compression=request.param)
  split = jax.device_put(tree["a"]["kernel"], NamedSharding(MESH, P("fsdp")))
  with ocp.Checkpointer(handler) as writer:
    writer.save(path, tree | {"a": {"kernel": split}})
  return path


def _wanted(tree, spec=None, dtype=None):
  def place(leaf):
    fits = spec is not None and leaf.shape == (16, 24)
    sharding = NamedSharding(MESH, spec if fits else P())
    return jax.ShapeDtypeStruct(
      leaf.shape, dtype or leaf.dtype, sharding=sharding
    )

  return jax.tree.map(place, tree)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_layout_gets_the_same_bits(folder, tree, spec):
  wanted = _wanted(tree, spec)
  found = arrays.restore(folder, wanted)
  assert jax.tree.structure(found) == jax.tree.structure(tree)
  for leaf, want, expected in zip(
    jax.tree.leaves(found),
    jax.tree.leaves(wanted),
    jax.tree.leaves(tree),
    strict=True,
  ):
    assert leaf.sharding == want.sharding and leaf.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected))


def test_it_reads_what_orbax_reads(folder):
  theirs = arrays.by_path(ocp.PyTreeCheckpointer().restore(folder))
  ours = dict(arrays.read(folder))
  assert ours.keys() == theirs.keys() == arrays.describe(folder).keys()
  for name, leaf in ours.items():
    np.testing.assert_array_equal(leaf, np.asarray(theirs[name]))


def test_another_type_only_where_it_is_asked_for(folder, tree):
  wanted = _wanted(tree, dtype=jnp.bfloat16)
  with pytest.raises(ValueError, match="a/kernel float32 there, bfloat16 here"):
    arrays.restore(folder, wanted)
  found = arrays.restore(folder, wanted, casts=True)
  expected = tree["a"]["kernel"].astype(jnp.bfloat16)
  np.testing.assert_array_equal(found["a"]["kernel"], expected)


def test_all_that_does_not_fit_is_listed(folder, tree):
  wanted = _wanted(tree)
  wanted["extra"] = wanted["count"]
  del wanted["flags"]
  wanted["a"]["kernel"] = jax.ShapeDtypeStruct(
    (16, 25), jnp.float32, sharding=NamedSharding(MESH, P())
  )
  wanted["count"] = jax.ShapeDtypeStruct(
    (), jnp.float32, sharding=NamedSharding(MESH, P())
  )
  with pytest.raises(ValueError) as caught:
    arrays.restore(folder, wanted)
  said = str(caught.value).splitlines()  # five at most are shown
  assert "use the config.json beside it, or another --workdir" in said[0]
  assert said[1:] == [
    "  missing there: extra",
    "  only there: flags",
    "  other shapes: a/kernel (16, 24) there, (16, 25) here",
    "  other types: count int32 there, float32 here",
  ]
