"""Rules: every name placed, nothing silently whole (S2, S3, S4)."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P

from models import deepseek, families, gpt, llama
from sharding import mesh, report, rules

MESH = mesh.make(mesh.Config(data=2, fsdp=2, tensor=2))
LAYOUT = rules.make(MESH, "fsdp_tensor")


def test_names_become_mesh_axes():
  place = LAYOUT.sharding(("embed", "heads", "head"), (32, 4, 8))
  assert place.spec == P(("fsdp", "context"), "tensor", None)
  assert LAYOUT.batch.spec == P(("replica", "data", "fsdp"), "context")
  assert LAYOUT.n_batch_shards == 4


def test_an_unknown_name_is_told_with_the_nearest():
  with pytest.raises(ValueError, match="'head_s'; did you mean 'heads'"):
    LAYOUT.sharding(("embed", "head_s"), (32, 4))


def test_an_indivisible_size_is_an_error_with_the_leaf():
  axes = {"attention": {"k": ("embed", "kv_heads", "head")}}
  shapes = {"attention": {"k": jax.ShapeDtypeStruct((32, 3, 8), jnp.float32)}}
  with pytest.raises(ValueError, match="attention.*k.*'kv_heads' of size 3"):
    LAYOUT.shardings(axes, shapes)


def test_an_indivisible_activation_is_an_error_not_a_replica():
  # jax itself replicates it without a word.
  with LAYOUT.use(), pytest.raises(ValueError, match="'batch' of size 3"):
    jax.eval_shape(
      lambda x: rules.constrain(x, "batch", None), jnp.ones((3, 2))
    )


def test_two_dimensions_on_one_axis_collide():
  with pytest.raises(ValueError, match="'tensor' is taken twice"):
    LAYOUT.sharding(("heads", "mlp"), (4, 4))


def test_a_table_that_leaves_an_axis_idle_is_refused():
  with pytest.raises(ValueError, match="place nothing on tensor=2.*fsdp_tens"):
    rules.make(MESH, "fsdp")
  with pytest.raises(ValueError, match="did you mean 'zero1'"):
    rules.make(MESH, "zero_1")


@pytest.mark.parametrize("table", sorted(rules.TABLES))
@pytest.mark.parametrize(
  "config",
  [
    llama.PRESETS["llama3_70b"],
    gpt.PRESETS["gpt2_124m"],
    deepseek.PRESETS["5m"],
  ],
  ids=["llama3_70b", "gpt2_124m", "deepseek_5m"],
)
def test_every_weight_of_every_family_has_a_rule(config, table):
  one = mesh.make(mesh.Config(data=8))
  layout = rules.Layout(one, rules.TABLES[table])
  shapes = families.abstract(config)
  placed = layout.shardings(families.axes(config), shapes)
  assert jax.tree.structure(placed) == jax.tree.structure(shapes)


def test_a_70b_model_is_split_in_every_large_leaf():
  sizes = mesh.Config(data=1, fsdp=4, tensor=2)
  layout = rules.make(mesh.make(sizes), "fsdp_tensor")
  config = llama.PRESETS["llama3_70b"]
  shapes = families.abstract(config)
  placed = layout.shardings(families.axes(config), shapes)
  whole = [
    leaf.shape
    for leaf, place in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True
    )
    if place.is_fully_replicated
    and np.prod(leaf.shape) * 4 >= 4 * report.LIMIT_BYTES
  ]
  assert not whole


def test_the_report_counts_bytes_of_one_device():
  x = jax.device_put(
    jnp.ones((8, 4)), LAYOUT.sharding(("embed", "heads"), (8, 4))
  )
  assert report.bytes_per_device(x) == 8 * 4 * 4 // 4
  text = report.table({"a": {"w": x}})
  assert "a/w" in text and "(('fsdp', 'context'), 'tensor')" in text
  assert text.splitlines()[-1].split() == ["total", "32"]


def test_a_large_leaf_that_lost_its_sharding_is_an_error():
  shape = (1024, 512)
  split = LAYOUT.sharding(("embed", "mlp"), shape)
  lost = jax.device_put(jnp.zeros(shape), LAYOUT.replicated)
  with pytest.raises(ValueError, match="'w'.*2,097,152 bytes"):
    report.check({"w": lost}, {"w": split})
  report.check({"w": lost}, {"w": LAYOUT.replicated})  # declared
  report.check({"w": jax.device_put(lost, split)}, {"w": split})
  half = jax.device_put(lost, LAYOUT.sharding(("embed", None), shape))
  with pytest.raises(ValueError, match="1,048,576 on each device"):
    report.check({"w": half}, {"w": split})
  small = jax.device_put(jnp.zeros((8, 8)), LAYOUT.replicated)
  wanted = LAYOUT.sharding(("embed", "mlp"), (8, 8))
  report.check({"w": small}, {"w": wanted})
  with pytest.raises(ValueError, match="replicated although"):
    report.check({"w": small}, {"w": wanted}, limit_bytes=0)
