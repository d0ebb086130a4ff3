"""The table of all meshes: benchmarks/parity/README.md."""

import collections
import dataclasses
import pathlib

from benchmarks.parity.cells import FAMILIES, Cell

PATH = pathlib.Path("benchmarks/parity/README.md")
_HEAD = """\
# Every mesh beside one device

    python -m benchmarks.parity.meshes    # writes this page

{n_cells} cells: a family on a mesh of eight virtual devices, with packed or
unpacked rows, in one or several parts; where rows are split, by some exchange
and order; where layers are, by some schedule (`--filter=NAME` runs those whose
name has it). Each makes two steps in fp32, and loss, gradient norm, every other
figure that is reported, updated parameters and momentum are compared with those
of one device. Entries are the largest relative difference, in millionths (of
parameters and momentum: of the largest of a leaf); ten fail, of momentum
two hundred (meshes.py says why). The largest of all is {worst:.1f}, of the {name} of {cell}.
"""
_REFUSED = """
## What is refused

Settings that the house does not run, in its own words, and what of the product
of families and meshes they concern.
"""


@dataclasses.dataclass(frozen=True)
class Result:
  """What came of a cell."""

  cell: Cell
  name: str  # of what is furthest apart
  worst: float  # how far
  why: str  # it failed; "" if it did not


def write(results: list[Result], refused: dict[str, str]) -> None:
  """Writes the page.

  Args:
    results: of all cells.
    refused: what is no cell -> why.
  """
  worst = max(results, key=lambda r: r.worst)
  text = _HEAD.format(
    n_cells=len(results),
    worst=worst.worst * 1e6,
    name=worst.name,
    cell=f"`{worst.cell.name}`",
  )
  PATH.write_text(text + _table(results) + _REFUSED + _reasons(refused))


def _table(results: list[Result]) -> str:
  entries: dict[str, dict[str, float]] = collections.defaultdict(dict)
  for r in results:
    row = entries[r.cell.strategy]
    row[r.cell.family] = max(row.get(r.cell.family, 0.0), r.worst)
  lines = [("mesh", *FAMILIES), ("---",) * (1 + len(FAMILIES))]
  for strategy, row in sorted(entries.items()):
    cells = [f"{row[f] * 1e6:.2f}" if f in row else "-" for f in FAMILIES]
    lines.append((strategy, *cells))
  return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _reasons(refused: dict[str, str]) -> str:
  concerned: dict[str, list[str]] = collections.defaultdict(list)
  for name, why in refused.items():
    concerned[why].append(name)
  return "\n".join(
    f"\n* {why}\n  {len(names)}: {'; '.join(sorted(names)[:4])}"
    + ("; ..." if len(names) > 4 else "")
    for why, names in sorted(concerned.items())
  ) + "\n"  # fmt: skip
