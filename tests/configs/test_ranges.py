"""Ranges hold what they say, at their ends too, and every number has one."""

import contextlib
import importlib
import inspect
import math
import pathlib
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import fields, ranges

ROOT = pathlib.Path(__file__).parent.parent.parent
FLOORS = ("sharding", "models", "data", "train", "serve")
# Numbers that may be anything, and why.
ANYTHING: dict[str, str] = {}


@pytest.mark.parametrize(
  "spelt, inside, outside",
  [
    ("[0, 1)", [0, 0.5, 1 - 2**-24], [1, 1 - 2**-26, -1e-9, math.nan]),
    ("(0, 1]", [1e-30, 1], [0, 1e-50, -0.0, 1 + 1e-6]),
    ("(0, inf)", [1e-37, 3e38], [math.inf, 1e39, 1e-39, -math.inf]),
    ("[1, 2**31)", [1, 2**31 - 1], [0, 2**31, -1, 10**400]),
    ("[1, 2**63)", [2**62], [2**63]),
    ("[-1, 8]", [-1, 8], [-2, 9]),
  ],
)
def test_a_range_is_spelt_as_in_mathematics(spelt, inside, outside):
  assert all(ranges.holds(spelt, number) for number in inside)
  assert not any(ranges.holds(spelt, number) for number in outside)


@given(st.floats(allow_nan=False))
def test_a_float_counts_as_float32_has_it(number):
  with np.errstate(over="ignore", under="ignore"):
    expected = np.float32(number)
  if abs(expected) < np.finfo(np.float32).tiny:
    expected = 0.0  # a device may flush it
  assert ranges.in_float32(number) == expected


def configs() -> list[type]:
  """Every dataclass of the house that a section of a page becomes."""
  found = {}
  for floor in FLOORS:
    for path in sorted((ROOT / floor).rglob("*.py")):
      name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
      module = importlib.import_module(name.removesuffix(".__init__"))
      chosen = [getattr(module, "Config", None)]
      for table in ("CONFIGS", "FAMILIES"):
        chosen += getattr(module, table, {}).values()
      for cls in chosen:
        if inspect.isclass(cls) and cls.__module__ == module.__name__:
          found |= nested(cls)
  return list(found.values())


def nested(cls: type) -> dict[str, type]:
  found = {f"{cls.__module__}.{cls.__qualname__}": cls}
  for hint in fields.hints_of(cls).values():
    if inner := fields.dataclass_in(hint):
      found |= nested(inner)
  return found


def numbers(hint) -> set[type]:
  """The types of number somewhere in a type."""
  if hint in (int, float):
    return {hint}
  return set().union(*map(numbers, typing.get_args(hint)))


def example(cls: type) -> dict:
  """Fields of an instance: a preset's, or the default and what is lacking."""
  if known := fields.presets(cls):
    preset = next(iter(known.values()))
    return {n: getattr(preset, n) for n in fields.hints_of(cls)}
  hints = fields.hints_of(cls)
  return {name: sample(hints[name]) for name in fields.required(cls)}


def sample(hint):
  if typing.get_origin(hint) is typing.Literal:
    return typing.get_args(hint)[0]
  if hint in (str, tuple[str, ...]):
    return "x" if hint is str else ("x",)
  for number in (0.01, 8):
    with contextlib.suppress(ValueError):
      return fields.cast(number, hint, "")


CASES = [
  pytest.param(cls, name, id=f"{cls.__module__}.{cls.__name__}.{name}")
  for cls in configs()
  for name, hint in fields.hints_of(cls).items()
  if numbers(hint)
]


@pytest.mark.parametrize("cls, name", CASES)
def test_every_number_refuses_what_is_no_value_of_it(cls, name):
  """NaN, infinity and booleans always; at the door, and built by hand."""
  hint = fields.hints_of(cls)[name]
  (kind,) = numbers(hint)
  wrap = (lambda n: (n,)) if "tuple" in fields.show(hint) else (lambda n: n)

  def is_refused(number, make):
    try:
      make(**{**example(cls), name: wrap(number)})
    except ValueError as error:
      assert name in str(error)
      return True
    return False

  def door(**values):
    fields.make(cls, values, "config.section")

  for number in (math.nan, math.inf, -math.inf, True):
    assert is_refused(number, door)
  finite = [kind(n) for n in (-2, -1, 0, 2, 2**63)]
  refused = [n for n in finite if is_refused(n, door)]
  assert refused or f"{cls.__module__}.{cls.__name__}.{name}" in ANYTHING
  assert all(is_refused(n, cls) for n in refused)


def test_the_law_sees_the_configs():
  names = {param.id for param in CASES}
  assert len(names) > 100
  assert {
    "models.llama.Config.norm_epsilon", "train.core.optim.AdamW.b1",
    "models.layers.position.Scaling.low", "data.prepare.Config.weights",
    "train.core.stopping.Config.patience",
  } <= names  # fmt: skip
  assert set(ANYTHING) <= names
