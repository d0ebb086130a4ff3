"""What a page needs: its sections, its argument, presets, sweeps."""

import ast
import builtins
import difflib
import itertools
from collections.abc import Iterable
from typing import Any

import ml_collections

SECTIONS = (
  "base", "adapter", "model", "tokenizer", "data", "batch", "objective", "optim", "schedule",
  "mesh", "train", "guard", "checkpoint", "eval", "generate",
)  # fmt: skip

Override = dict[str, Any]  # "optim.lr" -> value


def base() -> ml_collections.ConfigDict:
  """Gives a page with every section empty, locked against misspelt ones."""
  return ml_collections.ConfigDict({name: {} for name in SECTIONS}).lock()


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
