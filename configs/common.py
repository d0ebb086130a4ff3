"""What a page needs: its sections, its argument, presets, sweeps."""

import ast
import builtins
import difflib
import itertools
import math
import random
from collections.abc import Iterable
from typing import Any

import ml_collections

SECTIONS = (
  "base", "adapter", "model", "tokenizer", "data", "batch", "objective", "optim", "schedule",
  "mesh", "train", "guard", "checkpoint", "log", "eval", "generate",
)  # fmt: skip

Override = dict[str, Any]  # "optim.lr" -> value


def base() -> ml_collections.ConfigDict:
  """Gives a page with every section empty, locked against misspelt ones."""
  return ml_collections.ConfigDict({name: {} for name in SECTIONS}).lock()


def task(**values: Any) -> ml_collections.ConfigDict:
  """Gives the page of a task: train/evaluators/task.py has the fields."""
  return ml_collections.ConfigDict(values).lock()


def choices(
  arg: str, rows: str, asked: str = "texts", **shots: Any
) -> ml_collections.ConfigDict:
  """Gives the page of a task of options, which an argument may change.

  Args:
    arg: of the page: rows, shots, n, limit, asked.
    rows: where they are, if it does not say.
    asked: whether options are texts, or letters that stand before them.
    **shots: more of how examples are drawn.
  """
  own = parse_arg(arg, rows=rows, shots="", n=0, limit=0, asked=asked)
  return task(
    kind="choice",
    rows=own.rows,
    metrics=("acc",) if own.asked == "letters" else ("acc", "acc_norm"),
    limit=own.limit,
    shots=dict(n=own.n, rows=own.shots, **shots),
    asked=own.asked,
  )


def preset(family: str, name: str, **changes: Any) -> Override:
  """Gives the model section: a preset of a family and what is changed."""
  return dict(name=family, preset=name, **changes)


def parse_arg(arg: str, **defaults: Any) -> ml_collections.ConfigDict:
  """Reads a page's argument `a=1,b=x`; each value is typed by its default.

  Raises:
    ValueError: an unknown name, or a value of another type.
  """
  parsed = dict(defaults)
  for pair in filter(None, arg.split(",")):
    name, _, text = pair.partition("=")
    if name not in defaults:
      near = difflib.get_close_matches(name, defaults, n=1, cutoff=0)
      hint = f"the nearest is {near[0]}" if near else "this page takes none"
      raise ValueError(f"argument {name} is unknown; {hint}.")
    parsed[name] = _typed(name, text, defaults[name])
  return ml_collections.ConfigDict(parsed).lock()


def of_chip(chip: str, **values: Any) -> Any:
  """Picks what a page wants on a kind of chip: `of_chip("v5p", v5e=4, v5p=1)`.

  Raises:
    ValueError: the page says nothing of this chip.
  """
  if chip not in values:
    raise ValueError(f"argument chip={chip}: expected {', '.join(values)}.")
  return values[chip]


def _typed(name: str, text: str, default: Any) -> Any:
  if isinstance(default, str):
    return text
  try:
    value = ast.literal_eval(text.capitalize() if text.islower() else text)
  except (ValueError, SyntaxError):
    value = None
  if isinstance(default, float) and type(value) is int:
    value = float(value)
  if type(value) is not type(default):
    kind = type(default).__name__
    raise ValueError(f"argument {name}={text}: expected {kind}.")
  return value


def grid(**choices: Iterable[Any]) -> list[Override]:
  """Makes every combination: `grid(**{"optim.lr": [1, 2], "seed": [0, 1]})`."""
  rows = itertools.product(*choices.values())
  return [dict(builtins.zip(choices, row, strict=True)) for row in rows]


def zip(**choices: Iterable[Any]) -> list[Override]:
  """Walks several lists of one length together."""
  rows = builtins.zip(*choices.values(), strict=True)
  return [dict(builtins.zip(choices, row, strict=True)) for row in rows]


def chain(*sweeps: list[Override]) -> list[Override]:
  """Runs one sweep after the other."""
  return list(itertools.chain(*sweeps))


def sample(n: int, seed: int = 0, **laws: Iterable[Any]) -> list[Override]:
  """Draws n rows: `sample(8, **{"optim.lr": ("log", 1e-4, 1e-2)})`.

  A law is ("log", low, high), ("uniform", low, high), or choices. The same seed
  gives the same rows, and a longer list begins with a shorter one.
  """
  rows = []
  for i in range(n):
    rng = random.Random(f"{seed}/{i}")
    rows.append({key: _draw(rng, list(law)) for key, law in laws.items()})
  return rows


def _draw(rng: random.Random, law: list[Any]) -> Any:
  kind = law[0] if len(law) == 3 else None
  if kind == "log":
    return math.exp(rng.uniform(math.log(law[1]), math.log(law[2])))
  if kind == "uniform":
    return rng.uniform(law[1], law[2])
  return rng.choice(law)


def isoflop(
  budgets: Iterable[float],
  sizes: Iterable[tuple[int, Override]],
  tokens_per_step: int,
  least_steps: int = 1,
) -> list[Override]:
  """Spends every budget of FLOPs on every size: C = 6 N D (2001.08361).

  Args:
    budgets: FLOPs.
    sizes: parameters, and the settings of a model that has so many.
    tokens_per_step: of a batch.
    least_steps: rows with fewer are left out.
  """
  rows = []
  for budget in budgets:
    for n_params, override in sizes:
      steps = round(budget / (6 * n_params * tokens_per_step))
      if steps >= least_steps:
        rows.append({**override, "train.steps": steps})
  return rows


def ladder(
  widths: Iterable[int],
  depths: Iterable[int],
  steps: Iterable[int],
  d_head: int,
) -> list[Override]:
  """Every width with every depth and length; d_model, heads and d_ff follow.

  d_ff is 8/3 of the width in multiples of 32, as in SwiGLU blocks (2002.05202).
  """
  return [
    {
      "model.d_model": width,
      "model.n_heads": width // d_head,
      "model.n_kv_heads": width // d_head,
      "model.d_ff": max(1, round(width * 8 / 3 / 32)) * 32,
      "model.n_layers": depth,
      "train.steps": n,
    }
    for width, depth, n in itertools.product(widths, depths, steps)
  ]
