"""Meshes of eight devices beside one device: S1, S2, S6, S9, S11-S13.

A few cells of benchmarks/parity/cells.py; `make parity` runs them all.
"""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.parity import cells, collectives, meshes, page
from sharding import context, hlo, mesh

FEW = cells.few()
GOLDEN = collectives.stored()


@pytest.mark.parametrize("cell", FEW, ids=lambda cell: cell.name)
def test_a_mesh_gives_the_numbers_of_one_device(cell):
  """Every figure, updated parameters and momentum; what travels is golden."""
  there = meshes.outcome(cell)
  found = meshes.compare(cell, there)
  assert {"loss", "grad_norm", "parameters", "momentum"} <= found.keys()
  assert not meshes.too_far(found)
  if cell.family == "mixtral, room":
    alone = meshes.alone(cell.model, cell.is_packed, cell.n_micro)
    assert alone.metrics["dropped"] > 0
  if cell.name in GOLDEN["cpu"]:
    layout = meshes.place(cell.mesh)
    program = hlo.read(there.compiled.as_text(), layout.mesh)
    assert collectives.rows(program) == GOLDEN["cpu"][cell.name]


def test_a_difference_is_found():
  """In one place of one leaf, a hundred-thousandth of the largest."""
  here = meshes.alone(cells.FAMILIES["llama"], True, 1)
  assert not any(meshes.differences(here, here).values())
  params = jax.tree.map(np.copy, here.state.params)
  table = params["embed"]["table"]
  table[3, 5] += 2e-5 * np.abs(table).max()
  moved = dataclasses.replace(here.state, params=params)
  there = dataclasses.replace(here, state=moved)
  found = meshes.differences(there, here)
  assert found["parameters"] > meshes.LIMIT
  less = {k: v for k, v in here.metrics.items() if k != "accuracy"}
  with pytest.raises(ValueError, match="one reports"):
    meshes.differences(dataclasses.replace(here, metrics=less), here)


def test_what_fails_is_a_result_too():
  one = cells.Cell("llama", mesh.Config(data=16))
  result = meshes.judge(one)
  assert result.worst == float("inf") and "16 devices" in result.why


@pytest.mark.slow
def test_the_product_is_whole():
  every = cells.every()
  assert len(every) >= 200
  assert {c.family for c in every} == set(cells.FAMILIES)
  for family in cells.FAMILIES:
    own = [c for c in every if c.family == family]
    assert {c.is_packed for c in own} == {True, False}
    assert len({c.n_micro for c in own}) == 3
    assert len({c.mesh.pipeline for c in own}) >= 3
  assert {c.mesh.pipeline for c in every} >= {None, *cells.SCHEDULES.values()}
  for cell in every:
    assert not cell.refusal
  why = cells.refused()
  assert any("place nothing on tensor=8" in x for x in why.values())
  assert any("kv heads do not divide" in x for x in why.values())


def test_the_page_has_every_mesh_and_every_reason(monkeypatch, tmp_path):
  monkeypatch.setattr(page, "PATH", tmp_path / "README.md")
  results = [page.Result(c, "loss", i * 1e-8, "") for i, c in enumerate(FEW)]
  page.write(results, {"dp: tensor=8": "no.", "zero1: tensor=8": "no."})
  text = page.PATH.read_text()
  for cell in FEW:
    assert f"| {cell.strategy} |" in text
  assert f"{len(FEW)} cells" in text and text.count("* no.") == 1


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
def test_what_follows_is_the_next_of_the_row_in_any_order(order):
  on = mesh.Config(data=2, context=4, rules="dp", context_order=order)
  layout = meshes.place(on)
  rows = np.arange(2 * 16).reshape(2, 16)
  columns = context.columns(layout, 16)
  with layout.use():
    found = jax.jit(lambda x: context.following(x))(rows[:, columns])
  expected = np.pad(rows[:, 1:], ((0, 0), (0, 1)))
  np.testing.assert_array_equal(found, expected[:, columns])
