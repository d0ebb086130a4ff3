"""Slices that add up their gradients once a step."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from benchmarks.parity import cells, meshes
from models import adapters, families
from sharding import hlo, mesh
from train.core import slices
from train.objectives import labels, lm, mlm

LLAMA, GPT = cells.FAMILIES["llama"], cells.FAMILIES["gpt"]
ON = dict(replica=2, data=1, rules="fsdp")


@pytest.mark.slow
@pytest.mark.parametrize(
  "model, on, n_micro",
  [
    (LLAMA, mesh.Config(**ON, fsdp=4), 2),
    (LLAMA, mesh.Config(**ON, fsdp=2, context=2), 4),
    (LLAMA, mesh.Config(**ON, fsdp=2, stage=2, pipeline=cells.SCHEDULES["1f1b"]), 4),
    (GPT, mesh.Config(**{**ON, "rules": "tensor"}, tensor=4), 4),
  ],
)  # fmt: skip
def test_between_slices_goes_the_gradient_once_whatever_the_parts(
  model, on, n_micro
):
  """In fp32, and little else; the numbers are those of one device."""
  batch, layout = cells.batch(True), meshes.place(on)
  there = meshes.run(model, batch, on, n_micro=n_micro)
  here = meshes.alone(model, True, n_micro)
  assert not meshes.too_far(meshes.differences(there, here))
  shapes = families.abstract(model)
  places = layout.shardings(families.axes(model), shapes, "grads")
  sizes = jax.tree.map(
    lambda x, s: 4 * np.prod(s.shard_shape(x.shape)), shapes, places
  )
  n_bytes = sum(jax.tree.leaves(sizes))
  found = hlo.read(there.compiled.as_text(), layout.mesh).collectives
  far = sum(c.wire_bytes for c in found if "replica" in c.axes)
  # Ring of two: each receives as much as it has.
  assert n_bytes <= far <= n_bytes + 100


@pytest.mark.slow
@pytest.mark.parametrize(
  "model", [dataclasses.replace(GPT, dropout=0.2), cells.FAMILIES["mixtral"]]
)
def test_what_is_of_all_rows_is_as_on_one_device(model):
  on = mesh.Config(**ON, fsdp=4)
  there, here = (
    meshes.run(model, cells.batch(True), m, n_micro=2) for m in (on, None)
  )
  assert not meshes.too_far(meshes.differences(there, here))


def test_where_something_is_of_all_rows_slices_meet_in_every_part():
  layout = meshes.place(mesh.Config(**ON, fsdp=4))
  axis, plain = functools.partial(slices.axis, layout), lm.Config()
  assert axis(2, LLAMA, plain) == "replica"
  assert axis(2, LLAMA, labels.Config()) == "replica"
  assert axis(2, LLAMA, plain, adapters.Lora(paths=("*",))) == "replica"
  narrow = dataclasses.replace(LLAMA, dtype="bfloat16")
  assert axis(3, narrow, plain) == "replica"
  for given in (
    (1, LLAMA, plain),
    (2, narrow, plain),
    (2, dataclasses.replace(GPT, dropout=0.1), plain),
    (2, cells.FAMILIES["mixtral"], plain),
    (2, cells.FAMILIES["deepseek v3"], plain),
    (2, LLAMA, lm.Config(neftune_alpha=5.0)),
    (2, LLAMA, mlm.Config(mask_id=5)),
    (2, LLAMA, plain, adapters.Lora(paths=("*",), dropout=0.05)),
  ):
    assert axis(*given) is None
  assert slices.axis(meshes.place(None), 2, LLAMA, plain) is None
