"""The README's table of families: how far ours are from transformers'.

    python -m benchmarks.parity.table           prints it
    python -m benchmarks.parity.table --write   puts it into the README

Each row is an architecture of theirs: the largest difference of any logit over
its cases, in parts of the largest logit; the same of a gradient's sketch, in
parts of its norm; and whether its configs go out and come in again.
"""

import pathlib
import re
import sys
from typing import NamedTuple

import numpy as np

from benchmarks.parity import cases
from convert import catalogue
from convert.settings import Settings
from models import families

README = pathlib.Path("README.md")
_BEGIN, _END = "<!-- python -m benchmarks.parity.table -->", "<!-- so far -->"
_HEAD = (
  "| their architecture | family | cases | logits | gradients | in and out |"
)


class Line(NamedTuple):
  """A row, without what has to be measured."""

  theirs: str
  family: str
  n_cases: int
  converts: str


def lines() -> dict[Line, list[str]]:
  """The rows of all cases, and the cases of each."""
  found: dict[tuple[str, str], list[str]] = {}
  for name, config in cases.CASES.items():
    theirs = catalogue.of(config).theirs(config)["architectures"][0]
    found.setdefault((theirs, families.name(config)), []).append(name)
  return {
    Line(*key, len(names), _converts(names)): names
    for key, names in found.items()
  }


def _converts(names: list[str]) -> str:
  refused = []
  for name in names:
    config = cases.CASES[name]
    try:
      catalogue.read(Settings(catalogue.of(config).theirs(config)))
    except ValueError:
      refused.append(name)
  return f"yes; not {', '.join(refused)}" if refused else "yes"


def differences(name: str) -> tuple[float, float]:
  """How far a case is from the stored figures: logits, gradients."""
  config, stored = cases.CASES[name], cases.stored()
  logits, gradients = cases.run(config)
  real, theirs = cases.batch(config).segment_ids > 0, stored[f"{name}/logits"]
  apart = np.abs(logits[real] - theirs[real]).max() / np.abs(theirs).max()
  sketches = stored[f"{name}/gradients"]
  # Where a gradient is zero but for rounding, there is no share of it.
  norms = np.maximum(sketches[:, :1], 1e-2)
  return apart, (np.abs(cases.sketch(gradients) - sketches) / norms).max()


def make() -> str:
  """The whole table."""
  rows = [_HEAD, "|" + "---|" * (_HEAD.count("|") - 1)]
  for line, names in lines().items():
    logits, gradients = np.max([differences(name) for name in names], axis=0)
    rows.append(
      f"| {line.theirs} | {line.family} | {line.n_cases} | {logits:.0e} | "
      f"{gradients:.0e} | {line.converts} |"
    )
  return "\n".join(rows)


def stated() -> dict[Line, tuple[float, float]]:
  """The rows of the README, and the differences that it states."""
  block = README.read_text().partition(_BEGIN)[2].partition(_END)[0]
  found = {}
  for row in re.findall(r"^\| (\w+ \|.*)\|$", block, re.M):
    theirs, family, n_cases, logits, gradients, converts = (
      cell.strip() for cell in row.split("|")
    )
    line = Line(theirs, family, int(n_cases), converts)
    found[line] = float(logits), float(gradients)
  return found


def main() -> None:
  """Prints or writes."""
  table = make()
  print(table)
  if sys.argv[1:] == ["--write"]:
    before, _, rest = README.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    README.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}")


if __name__ == "__main__":
  main()
