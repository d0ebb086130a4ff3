"""Results for people: a table, a page in Markdown, a picture."""

from collections.abc import Mapping
from typing import Any

from etils import epath, epy

from models import durable

with epy.lazy_imports():  # half a second that training need not wait
  from matplotlib import figure as figures

Results = Mapping[str, Mapping[str, Any]]  # title -> what exam.sit gives
_HEAD = ("task", "items", "metric", "value", "standard error")


def rows(results: Results) -> list[tuple[str, ...]]:
  """A line for each figure."""
  found = []
  for title, result in results.items():
    for name, figure in result["metrics"].items():
      spread = figure["stderr"]
      found.append(
        (
          title,
          f"{result['n_items']:,}",
          name,
          f"{figure['value']:.4f}",
          "" if spread is None else f"{spread:.4f}",
        )
      )
  return found


def text(results: Results) -> str:
  """The table for a terminal."""
  lines = [_HEAD, *rows(results)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if i in (0, 2) else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )


def write(results: Results, out: epath.Path, name: str) -> None:
  """Writes OUT/report.md and OUT/report.png.

  Args:
    results: of all tasks in the folder.
    out: the folder.
    name: of what was measured.
  """
  draw(results, out / "report.png")
  lines = [f"# {name}", "", "| " + " | ".join(_HEAD) + " |"]
  lines.append("|---|---:|---|---:|---:|")
  lines += ["| " + " | ".join(row) + " |" for row in rows(results)]
  lines += ["", "![figures, with 95 % intervals](report.png)", ""]
  for title, result in results.items():
    settings = result["settings"]
    shots = settings["shots"]
    lines += [
      f"## {title}",
      "",
      f"* rows: `{settings['rows']}`, {result['n_items']:,} of them",
      f"* examples: {shots['n']} ({shots['draw']}, seed {shots['seed']})",
      f"* tokens of prompts that were cut: {result['n_cut_tokens']:,}",
      f"* digest of the items as asked: `{result['task_digest'][:16]}`",
    ]
    lines += [
      f"* {metric}: `{figure['signature']}`"
      for metric, figure in result["metrics"].items()
      if figure["signature"]
    ]
    lines.append("")
  durable.write_text(out / "report.md", "\n".join(lines))


def draw(results: Results, path: epath.Path) -> None:
  """A point with its 95 % interval for each figure; a panel for each metric."""
  panels: dict[str, list[tuple[str, float, float]]] = {}
  for title, result in results.items():
    for name, figure in result["metrics"].items():
      spread = 1.96 * (figure["stderr"] or 0.0)
      panels.setdefault(name, []).append((title, figure["value"], spread))
  longest = max(map(len, panels.values()))
  figure = figures.Figure(
    figsize=(3.6 * len(panels) + 1.2, 1.4 + 0.36 * longest)
  )
  axes = figure.subplots(1, len(panels), squeeze=False)[0]
  for axis, (name, points) in zip(axes, panels.items(), strict=True):
    titles, values, spreads = zip(*points, strict=True)
    axis.errorbar(
      values, range(len(values)), xerr=spreads, fmt="o", color="#22577a"
    )
    axis.set_yticks(range(len(values)), titles, fontsize=8)
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.set_title(name, loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, axis="x")
  figure.tight_layout()
  with path.open("wb") as file:
    figure.savefig(file, dpi=120, format="png")
