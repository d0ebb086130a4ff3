"""Ranges of numbers, declared as types: `lr: Positive`, `seed: Natural = 0`.

Spelt as in mathematics: "[0, 1)" holds 0, not 1. A range that has no name here
is written where it is needed, `Annotated[float, "(0, 1)"]`.

A float counts as what float32 makes of it, for that is what computes: there
1e-50 is 0, which no epsilon may be, and 0.99999999 is 1, at which an average
never moves.
"""

import struct
from typing import Annotated

Count = Annotated[int, "[1, 2**31)"]  # of what an int32 on a device counts
Natural = Annotated[int, "[0, 2**31)"]
Bytes = Annotated[int, "[1, 2**63)"]
Positive = Annotated[float, "(0, inf)"]
NonNegative = Annotated[float, "[0, inf)"]
Epsilon = Annotated[float, "(0, 1]"]
Share = Annotated[float, "[0, 1]"]
Fraction = Annotated[float, "[0, 1)"]

_SMALLEST = 2.0**-126  # what lies between it and 0 a device may flush to 0


def holds(spelt: str, number: int | float) -> bool:
  """Tells whether a number lies in the range; NaN lies in none."""
  low, high = ends(spelt)
  x = in_float32(number) if isinstance(number, float) else number
  above = low <= x if spelt[0] == "[" else low < x
  below = x <= high if spelt[-1] == "]" else x < high
  return above and below


def show(spelt: str) -> str:
  """Writes a range after the name of a type: `in [0, 1)`, or `> 0`."""
  if not spelt.endswith("inf)"):
    return f"in {spelt}"
  return f"{'>=' if spelt[0] == '[' else '>'} {spelt[1:].partition(',')[0]}"


def ends(spelt: str) -> tuple[float, float]:
  """The numbers where a range begins and ends."""
  low, high = spelt[1:-1].split(",")
  return _number(low), _number(high)


def in_float32(number: float) -> float:
  """The number as a device has it."""
  if abs(number) < _SMALLEST:
    return 0.0
  try:
    return struct.unpack("f", struct.pack("f", number))[0]
  except OverflowError:
    return float("inf") if number > 0 else float("-inf")


def _number(text: str) -> float:
  base, _, power = text.partition("**")
  return float(base) ** int(power or 1)
