"""What pages use: a locked base, typed arguments, sweeps."""

import pytest

from configs import common


def test_base_has_every_section_and_refuses_others():
  config = common.base()
  config.optim = dict(lr=1e-3)
  assert config.to_dict()["optim"] == {"lr": 1e-3}
  with pytest.raises(AttributeError, match='Did you mean "optim"'):
    config.optimm = {}


def test_an_argument_is_typed_by_its_default():
  arg = common.parse_arg(
    "steps=3,lr=1,fast=true,name=x", steps=1, lr=0.1, fast=False, name="", n=9
  )
  assert arg.to_dict() == dict(steps=3, lr=1.0, fast=True, name="x", n=9)
  assert type(arg.lr) is float
  assert common.parse_arg("lr=1e-4", lr=0.1).lr == 1e-4
  assert common.parse_arg("", steps=1).steps == 1


@pytest.mark.parametrize(
  "arg, words",
  [
    ("step=3", "argument step is unknown; the nearest is steps."),
    ("steps=3.5", "argument steps=3.5: expected int."),
    ("steps=true", "expected int."),
    ("steps", "argument steps=: expected int."),
    ("lr=x", "argument lr=x: expected float."),
    ("fast=1", "argument fast=1: expected bool."),
  ],
)
def test_a_wrong_argument_is_told(arg, words):
  with pytest.raises(ValueError) as error:
    common.parse_arg(arg, steps=1, lr=0.1, fast=False)
  assert words in str(error.value)


def test_sweeps_are_lists_of_overrides():
  lrs, seeds = {"optim.lr": [1, 2]}, {"train.seed": [3, 4]}
  assert common.grid(**lrs, **seeds) == [
    {"optim.lr": 1, "train.seed": 3},
    {"optim.lr": 1, "train.seed": 4},
    {"optim.lr": 2, "train.seed": 3},
    {"optim.lr": 2, "train.seed": 4},
  ]
  assert common.zip(**lrs, **seeds) == [
    {"optim.lr": 1, "train.seed": 3},
    {"optim.lr": 2, "train.seed": 4},
  ]
  assert common.chain(common.grid(**lrs), common.grid(**seeds)) == [
    {"optim.lr": 1},
    {"optim.lr": 2},
    {"train.seed": 3},
    {"train.seed": 4},
  ]
  with pytest.raises(ValueError):
    common.zip(**lrs, **{"train.seed": [3]})
