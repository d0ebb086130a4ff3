"""The page at the end of a run: its curves as a picture, its figures as a table.

    python -m train.report --workdir=runs/quick

Reads what the run and its evaluation left, draws WORKDIR/curves.png and writes
WORKDIR/report.md, as the run itself does when it ends.
"""

import json
from typing import Any

from etils import epath

from configs import door
from models import checkpoint
from train.core import goodput, sinks, summary

SECTIONS: dict[str, type] = {}


def main(_: door.Config, workdir: epath.Path) -> None:
  """Draws, writes and prints."""
  summary.write(workdir)
  rows = sinks.rows(workdir)
  train = [r for r in rows if r["kind"] == "train" and "loss" in r]
  path = workdir / "evaluation.json"
  figures = json.loads(path.read_text()) if path.exists() else {}
  print(table(train, figures, workdir))


def table(
  train: list[dict[str, Any]], figures: dict[str, Any], workdir: epath.Path
) -> str:
  """What a run came to, where it lies, and what to do next."""
  first, last = train[0], train[-1]
  steady = train[1:] or train  # the first line has one step
  rate = sum(row["tokens_per_second"] for row in steady) / len(steady)
  lines = [
    ("loss", f"{first['loss']:.3f} at the start, {last['loss']:.3f} now")
  ]
  if "bits_per_byte" in figures:
    others = [
      f"{name} {figures[f'{name}_bits_per_byte']:.3f}"
      for name in ("gzip", "bz2", "xz")
      if f"{name}_bits_per_byte" in figures
    ]
    lines.append(("held-out bits per byte", f"{figures['bits_per_byte']:.3f}"))
    if others:
      lines.append(("  the same bytes by", ", ".join(others)))
  if "python_share" in figures:
    passed = f"{figures['python_share']:.0%} of samples (their first ten lines)"
    lines.append(("passes as Python", passed))
  mfu = sum(row.get("mfu", 0) for row in steady) / len(steady)
  share = f", MFU {mfu:.1%} of the measured matmul peak" if mfu else ""
  lines += [
    ("speed", f"{rate:,.0f} tokens/s{share}"),
    ("goodput", f"{goodput.share(goodput.lives(workdir)):.1%} of the time"),
    ("checkpoint", str(checkpoint.find(workdir))),
    ("report", f"{workdir / 'report.md'}, curves.png beside it"),
    ("samples", str(workdir / "samples.txt")),
    ("numbers", f"{workdir / 'metrics.jsonl'}, TensorBoard beside it"),
  ]
  width = max(len(name) for name, _ in lines)
  text = "\n".join(f"  {name:<{width}}  {value}" for name, value in lines)
  return f"""
{text}

  next:
    python -m serve.generate --workdir={workdir} --prompt='def main('
    python -m data.show --workdir={workdir}
    python -m train.pretrain --workdir={workdir} --config.train.steps={max(2000, 2 * last["step"])}
"""


if __name__ == "__main__":
  door.run(main, SECTIONS)
