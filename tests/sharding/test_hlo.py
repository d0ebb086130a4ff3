"""Reading compiled programs: known products, loops, groups (S6)."""

import re

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sharding import hlo
from sharding import mesh as meshes

N_TURNS, B, D = 7, 16, 32


def compiled(mesh, function, *shapes_and_specs):
  arguments = [
    jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, spec))
    for s, spec in shapes_and_specs
  ]
  return jax.jit(function).lower(*arguments).compile().as_text()


@pytest.fixture(scope="module")
def mesh():
  return meshes.make(meshes.Config(data=2, fsdp=2, tensor=2))


def test_products_in_a_loop_count_as_often_as_it_turns(mesh):
  def scanned(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  text = compiled(mesh, scanned, ((B, D), P("data")), ((N_TURNS, D, D), P()))
  found = hlo.read(text, mesh)
  # Rows are split over two; the other axes repeat the work.
  assert found.flops == N_TURNS * 2 * (B // 2) * D * D
  assert not found.unknown_loops
  assert not found.collectives


def test_what_travels_has_its_kind_axes_and_bytes(mesh):
  def on_shard(x):
    gathered = jax.lax.all_gather(x, "fsdp", tiled=True)
    total = jax.lax.psum(x, ("data", "tensor"))
    passed = jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)])
    return gathered.sum(0, keepdims=True) + total + passed

  run = jax.shard_map(
    on_shard, mesh=mesh, in_specs=P(("data", "fsdp", "tensor")),
    out_specs=P(("data", "fsdp", "tensor")),
  )  # fmt: skip
  rows = ((B, D), P(("data", "fsdp", "tensor")))
  found = hlo.read(compiled(mesh, run, rows), mesh)
  one = B // 8 * D * 4  # bytes that a device has
  seen = {(c.kind, c.axes): (c.count, c.wire_bytes) for c in found.collectives}
  assert seen == {
    ("all-gather", ("fsdp",)): (1, one),
    ("all-reduce", ("data", "tensor")): (1, 2 * one * 3 / 4),
    ("collective-permute", ("tensor",)): (1, one),
  }


def test_exchanges_that_shard_map_says_are_told_apart(mesh):
  """All of them stand under one channel: another of a kind, in a loop or not."""

  def on_shard(x):
    turn = lambda x, _: (jax.lax.psum(x, "tensor") / 2, None)  # noqa: E731
    x, _ = jax.lax.scan(turn, x, length=N_TURNS)
    return jax.lax.psum(jnp.sin(jax.lax.psum(x, "tensor")), "tensor")

  run = jax.shard_map(
    on_shard, mesh=mesh, in_specs=P(None), out_specs=P(None), check_vma=False
  )
  text = compiled(mesh, run, ((B, D), P(None)))
  assert set(re.findall(r"channel_id=(\d+)", text)) == {"1"}
  (found,) = hlo.read(text, mesh).collectives
  count = N_TURNS + 2
  assert (found.kind, found.axes, found.count, found.wire_bytes) == (
    "all-reduce", ("tensor",), count, count * 4 * B * D,
  )  # fmt: skip


GROUPS = {
  "replica_groups={{0,1},{2,3},{4,5},{6,7}}": (("tensor",), 2),
  "replica_groups={{0,2,4,6},{1,3,5,7}}": (("data", "fsdp"), 4),
  "replica_groups=[4,2]<=[8]": (("tensor",), 2),
  "replica_groups=[2,4]<=[4,2]T(1,0)": (("data", "fsdp"), 4),
  "replica_groups=mesh['a'=4,'b'=2] {'b'}": (("tensor",), 2),
  "replica_groups=mesh['a'=4,'b'=2] {'a'}": (("data", "fsdp"), 4),
  "replica_groups=mesh['a'=8] {'a':(2)2}": (("fsdp",), 2),
  "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}": (
    ("tensor",),
    2,
  ),
  "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}": (
    ("data", "fsdp"),
    4,
  ),
  "source_target_pairs={{0,4},{1,5},{2,6},{3,7}}": (("data",), 2),
}


@pytest.mark.parametrize("written", GROUPS)
def test_groups_are_told_by_the_axes_they_span(written):
  sizes = {"data": 2, "fsdp": 2, "tensor": 2}
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
  line = f"%x = f32[4]{{0}} all-reduce(%y), channel_id=1, {written}, z=1"
  kind = "collective-permute" if "pairs" in written else "all-reduce"
  text = "ENTRY %main (y: f32[4]) -> f32[4] {\n  " + line.replace(
    "all-reduce", kind
  )
  (found,) = hlo.read(f"{text}\n}}\n", mesh).collectives
  axes, size = GROUPS[written]
  assert found.axes == axes
  if kind == "all-reduce":
    np.testing.assert_allclose(found.wire_bytes, 2 * 16 * (size - 1) / size)


FAR = """
ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %token = token[] after-all()
  %recv.1 = (bf16[4,8]{1,0}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, frontend_attributes={SAID}
  %send.1 = (bf16[4,8]{1,0}, u32[], token[]) send(%x, %token), channel_id=2, is_host_transfer=true, frontend_attributes={SAID}
  ROOT %done = bf16[4,8]{1,0} recv-done(%recv.1), channel_id=1
}
"""
SAID = """_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",\
_xla_megascale_transfer_type="ALL_REDUCE\""""


def test_what_hosts_carry_between_slices_is_told_once():
  """Two slices of four: TPU compilers write a send and a recv."""
  mesh = meshes.abstract(meshes.Config(replica=2, data=2, fsdp=2), 8)
  (found,) = hlo.read(FAR.replace("SAID", SAID), mesh).collectives
  assert (found.kind, found.axes, found.count) == (
    "all-reduce",
    ("replica",),
    1,
  )
  assert found.wire_bytes == 4 * 8 * 2  # 2 (n - 1) / n of it


LOOP = """
%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[], f32[8,8]) tuple(%next, %y)
}
%condition (p: (s32[], f32[8,8])) -> pred[] {
  %p = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %end = s32[] constant(11)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}
ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %one = s32[] constant(1)
  %start = (s32[], f32[8,8]) tuple(%one, %x)
  %loop = (s32[], f32[8,8]) while(%start), condition=%condition, body=%body
  ROOT %y = f32[8,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_of_a_tpu_is_counted_by_its_condition():
  """From 1 to 11 in steps of 2: TPU compilers do not tell it."""
  mesh = AbstractMesh((1,), ("data",))
  assert hlo.read(LOOP, mesh).flops == 5 * 2 * 8**3


def test_what_the_sparse_cores_do_ends_where_it_ends():
  """On v7x a computation of theirs closes with the thread that it runs on."""
  mesh = AbstractMesh((2,), ("data",))
  asked = """
%exchange (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %sum = f32[4]{0} all-reduce(%x), channel_id=2, replica_groups={{0,1}}
}, execution_thread="sparsecore"

%wrapped (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %called = f32[4]{0} call(%x), to_apply=%exchange, backend_config={"estimated_cycles":"9223372036854775807"}
}, execution_thread="sparsecore"

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %start = ((f32[4]{0}), f32[4]{0}, u32[]) call-start(%x), to_apply=%wrapped
  ROOT %done = f32[4]{0} call-done(%start)
}
"""
  program = hlo.read(asked, mesh)
  assert program.cycles == 0
  (found,) = program.collectives
  assert (found.kind, found.axes, found.wire_bytes) == (
    "all-reduce",
    ("data",),
    4 * 4,
  )
