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


def test_draws_are_the_same_and_within_their_laws():
  laws = {
    "optim.lr": ("log", 1e-4, 1e-2),
    "optim.b1": ("uniform", 0.8, 0.99),
    "model.n_layers": (2, 4, 8, 16),
  }
  rows = common.sample(200, seed=1, **laws)
  assert rows[:50] == common.sample(50, seed=1, **laws)
  assert rows[:50] != common.sample(50, seed=2, **laws)
  rates = sorted(row["optim.lr"] for row in rows)
  assert 1e-4 <= rates[0] and rates[-1] <= 1e-2
  assert 5e-4 < rates[100] < 2e-3  # the middle, in logarithms
  assert all(0.8 <= row["optim.b1"] <= 0.99 for row in rows)
  assert {row["model.n_layers"] for row in rows} == {2, 4, 8, 16}


def test_a_ladder_spends_every_budget_on_every_size():
  sizes = [(1_000, {"a": 1}), (4_000, {"a": 2})]
  rows = common.isoflop([6e8, 2.4e9], sizes, tokens_per_step=100)
  assert [row["train.steps"] for row in rows] == [1000, 250, 4000, 1000]
  assert len(common.isoflop([6e8], sizes, 100, least_steps=300)) == 1


def test_widths_depths_and_lengths():
  rows = common.ladder([64, 128], [2, 4], [100], d_head=16)
  assert len(rows) == 4
  assert rows[-1]["model.n_heads"] == 8 and rows[-1]["model.d_ff"] == 352
