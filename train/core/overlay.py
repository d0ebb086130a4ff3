"""Several runs side by side: their losses over what they took, their settings.

Tokens are those of whole batches, padding too; FLOPs are the model's, not what
remat repeats; seconds are those of steps that count, with the wait for data:
compiling, evaluating and saving are in none of them.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib import figure as figures
from matplotlib import ticker

from configs import door, fields
from data import pipeline
from models import families, flops
from train.core import curves, goodput, sinks

# What is drawn: kind and key of the rows.
LOSSES = {
  "held-out loss": ("eval", "heldout_loss"),
  "training loss": ("train", "loss"),
}
OVER = ("step", "tokens", "FLOPs", "seconds of training")
Points = list[tuple[float, float]]
_FEW = 30  # points of a line that are shown each
_SECTIONS = {"model": families.FAMILIES, "batch": pipeline.Config}


@dataclasses.dataclass(frozen=True)
class Run:
  """One of them.

  Attributes:
    name: that tells it from the others.
    folder: its workdir.
    rows: of its metrics.jsonl.
    settings: dotted key -> plain value.
    tokens_per_step: of the global batch.
    flops_per_token: forward and backward.
  """

  name: str
  folder: epath.Path
  rows: list[sinks.Row]
  settings: Mapping[str, Any]
  tokens_per_step: int
  flops_per_token: float

  def taken(self, steps: Sequence[int]) -> dict[str, np.ndarray]:
    """What it had taken by each of some steps, by the names of OVER."""
    steps = np.asarray(steps, float)
    tokens = steps * self.tokens_per_step
    lines = sinks.points(self.rows, "train", "step_seconds")
    reached = np.array([0, *(step for step, _ in lines)], float)
    spent = np.diff(reached) * [seconds for _, seconds in lines]
    seconds = np.interp(steps, reached, [0.0, *np.cumsum(spent)])
    amounts = steps, tokens, tokens * self.flops_per_token, seconds
    return dict(zip(OVER, amounts, strict=True))

  def curves(self) -> dict[tuple[str, str], Points]:
    """(loss, over what) -> points."""
    found = {}
    for label, (kind, key) in LOSSES.items():
      points = sinks.points(self.rows, kind, key)
      if points:
        steps, losses = zip(*points, strict=True)
        for over, amounts in self.taken(steps).items():
          found[label, over] = list(zip(amounts, losses, strict=True))
    return found

  def ended(self) -> dict[str, float | None]:
    """Where it stands: what it took, and its last and its lowest losses."""
    last = max(row["step"] for row in self.rows)
    found = {k: float(v[0]) for k, v in self.taken([last]).items()}
    for label, (kind, key) in LOSSES.items():
      losses = [loss for _, loss in sinks.points(self.rows, kind, key)]
      found[label] = losses[-1] if losses else None
      if kind == "eval":
        found[f"lowest {label}"] = min(losses, default=None)
    bits = sinks.points(self.rows, "eval", "bits_per_byte")
    found["bits per byte"] = bits[-1][1] if bits else None
    seconds, n_tokens = found["seconds of training"], found["tokens"]
    found["tokens a second"] = n_tokens / seconds if seconds else None
    lives = goodput.lives(self.folder)
    found["goodput"] = goodput.share(lives) if lives else None
    return found


def read(workdirs: Sequence[str]) -> list[Run]:
  """Reads runs.

  Raises:
    ValueError: a folder is none, or is named twice.
  """
  paths = [epath.Path(workdir) for workdir in workdirs]
  if len({path.resolve() for path in paths}) < len(paths):
    raise ValueError(f"{' '.join(workdirs)} names a run twice: name others.")
  names = [path.resolve().name for path in paths]
  if len({*names}) < len(names):
    names = list(workdirs)
  return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: epath.Path, name: str) -> Run:
  rows = sinks.rows(path)
  if not (path / "config.json").exists() or not any(
    row["kind"] == "train" for row in rows
  ):
    raise ValueError(
      f"{path} is no run that has made steps: it has no config.json and no "
      "metrics.jsonl with any. Give the --workdir of a training."
    )
  settings = door.read(path / "config.json")
  c = door.build(settings, _SECTIONS)
  per_token = flops.train_per_token(
    c.model, c.batch.length, c.batch.source_length
  )
  tokens = c.batch.size * c.batch.length
  return Run(name, path, rows, dict(fields.leaves(settings)), tokens, per_token)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
  """Settings that not all have alike: dotted key -> the value of each."""
  keys = dict.fromkeys(key for run in runs for key in run.settings)
  found = {key: [run.settings.get(key) for run in runs] for key in keys}
  return {
    key: values
    for key, values in found.items()
    if any(value != values[0] for value in values[1:])
  }


def picture(runs: Sequence[Run]) -> figures.Figure:
  """A row for each loss, a column for what it is drawn over, a colour a run."""
  lines = {run.name: run.curves() for run in runs}
  drawn = {pair for panels in lines.values() for pair in panels}
  rows = [label for label in LOSSES if (label, OVER[0]) in drawn]
  size = (1 + 3.6 * len(OVER), 0.9 + 3.1 * len(rows))
  figure = figures.Figure(figsize=size, layout="constrained")
  axes = figure.subplots(
    len(rows), len(OVER), sharex="col", sharey="row", squeeze=False
  )
  few = len(runs) <= 10
  colors = matplotlib.colormaps["tab10" if few else "turbo"]
  for i, (name, panels) in enumerate(lines.items()):
    color = colors(i if few else i / (len(runs) - 1))
    for (row, over), points in panels.items():
      axis = axes[rows.index(row), OVER.index(over)]
      how = "o-" if len(points) < _FEW else "-"
      options = dict(color=color, linewidth=1.4, markersize=4, label=name)
      axis.plot(*zip(*points, strict=True), how, **options)
  for (i, j), axis in np.ndenumerate(axes):
    axis.set_yscale("log")
    curves.mark(axis.yaxis)
    curves.finish(axis)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
    if not j:
      axis.set_ylabel(f"{rows[i]}, per target")
    if i == len(rows) - 1:
      axis.set_xlabel(OVER[j])
  handles, names = axes[-1, 0].get_legend_handles_labels()
  place = dict(loc="outside upper left", ncols=4, frameon=False)
  figure.legend(handles, names, **place)
  return figure


def table(runs: Sequence[Run]) -> str:
  """What differs, and where they ended; a column for each run."""
  ended = [run.ended() for run in runs]
  lines = [["", *(run.name for run in runs)], ["settings that differ"]]
  changed = differences(runs)
  lines += [[f"  {k}", *map(str, values)] for k, values in changed.items()]
  if not changed:
    lines.append(["  none"])
  lines.append(["at the end"])
  lines += [[f"  {k}", *(_short(k, e[k]) for e in ended)] for k in ended[0]]
  if {key.split(".")[0] for key in changed} & {"tokenizer", "data"}:
    lines += [
      ["text or tokenizer differ: a loss per token may be of another text, or"],
      ["of other tokens; bits per byte does not know tokens"],
    ]
  tabled = [line for line in lines if len(line) > 1]
  widths = [max(map(len, column)) for column in zip(*tabled, strict=True)]
  return "\n".join(
    "  ".join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=False))
    ).rstrip()
    if line in tabled
    else line[0]
    for line in lines
  )


def _short(name: str, value: float | None) -> str:
  if value is None:
    return "-"
  if name == "goodput":
    return f"{value:.1%}"
  if name == "FLOPs":
    return f"{value:.2e}"
  return f"{value:.4f}" if "loss" in name or "bits" in name else f"{value:,.0f}"


def show(workdirs: Sequence[str], path: epath.Path | None) -> None:
  """Draws runs into a file, compare.png beside the first where none is named.

  Prints the table, and `line` as JSON.

  Raises:
    ValueError: as `read`.
  """
  runs = read(workdirs)
  path = path or runs[0].folder.parent / "compare.png"
  with path.open("wb") as file:
    picture(runs).savefig(file, dpi=120, format="png")
  print(table(runs))
  print(json.dumps(line(runs, path)))


def line(runs: Sequence[Run], path: epath.Path) -> dict[str, Any]:
  """What a program reads."""
  changed = differences(runs)
  return {
    "picture": str(path),
    "runs": {run.name: _finite(run.ended()) for run in runs},
    "differ": {
      key: dict(zip((run.name for run in runs), values, strict=True))
      for key, values in changed.items()
    },
  }


def _finite(found: Mapping[str, float | None]) -> dict[str, float | None]:
  """JSON knows no NaN."""
  return {
    k: None if v is None or not math.isfinite(v) else v
    for k, v in found.items()
  }
