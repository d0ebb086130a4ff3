"""report.md: a run on one page, for whoever finds its folder.

Curves, figures, time, samples, settings and lineage, each as the run left it;
what a run does not have is left out.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath, epy

from configs import door
from models import checkpoint, durable, manifest
from train.core import goodput, lineage, sinks
from train.evaluators import table

with epy.lazy_imports():  # matplotlib: half a second that a run need not wait
  from train.core import curves

_N_SAMPLES = 3
_SAMPLE_CHARACTERS = 1200
# Figure of a row -> what a person calls it; those of evaluation.json, too.
_NAMES = {
  "heldout_loss": "held-out loss",
  "heldout_accuracy": "held-out accuracy",
  "perplexity": "held-out perplexity",
  "bits_per_byte": "held-out bits per byte",
  "gzip_bits_per_byte": "the same bytes by gzip",
  "bz2_bits_per_byte": "the same bytes by bz2",
  "xz_bits_per_byte": "the same bytes by xz",
  "ngram_bits_per_byte": "the same bytes by n-grams",
  "python_share": "samples that are Python",
}


def write(workdir: epath.Path) -> epath.Path:
  """Draws WORKDIR/curves.png and writes WORKDIR/report.md, which it returns.

  Raises:
    ValueError: no run has made steps there.
  """
  rows = sinks.rows(workdir)
  if not sinks.points(rows, "train", "loss"):
    raise ValueError(
      f"{workdir} has no metrics.jsonl with steps: give the --workdir of a run."
    )
  with (workdir / "curves.png").open("wb") as file:
    curves.figure(rows, workdir.name).savefig(file, dpi=120, format="png")
  lives, settings = lineage.read(workdir), door.read(workdir / "config.json")
  parts = (
    [f"# {workdir.name}", "", "![curves over the steps](curves.png)"],
    _figures(workdir, rows),
    _tasks(workdir),
    _time(workdir, rows),
    _samples(sinks.texts(workdir)),
    _settings(settings, lives),
    _lineage(workdir, lives),
  )
  path = workdir / "report.md"
  text = "\n".join("\n".join([*part, ""]) for part in parts if part)
  durable.write_text(path, text)
  return path


def _figures(workdir: epath.Path, rows: list[dict[str, Any]]) -> list[str]:
  train = [row for row in rows if row["kind"] == "train" and "loss" in row]
  first, last = train[0], train[-1]
  found = [("training loss", last["loss"], last["step"])]
  found.append(("the same at the start", first["loss"], first["step"]))
  latest = {}  # of each figure, what was told last
  for row in rows:
    if row["kind"] == "eval":
      latest |= {k: (v, row["step"]) for k, v in row.items()}
  path = workdir / "evaluation.json"
  ended = json.loads(path.read_text()) if path.exists() else {}
  latest |= {k: (v, ended["step"]) for k, v in ended.items()}
  found += [
    (_NAMES.get(name, name), *told)
    for name, told in latest.items()
    if name not in ("step", "kind")
  ]
  lines = [(name, f"{value:.4f}", f"{step:,}") for name, value, step in found]
  return ["## Figures", "", *_table(("figure", "value", "step"), lines, "lrr")]


def _tasks(workdir: epath.Path) -> list[str]:
  folder = workdir / "evaluation"
  results = {
    path.stem: json.loads(path.read_text())
    for path in sorted(folder.glob("*.json"))
  }
  if not results:
    return []
  head = ("task", "items", "metric", "value", "standard error")
  return [
    "## Tasks", "",
    *_table(head, table.rows(results), "lrlrr"),
    "", "More in [evaluation/report.md](evaluation/report.md).",
  ]  # fmt: skip


def _time(workdir: epath.Path, rows: list[dict[str, Any]]) -> list[str]:
  train = [row for row in rows if row["kind"] == "train" and "loss" in row]
  steady = train[1:] or train  # the first line has one step
  rate = sum(row["tokens_per_second"] for row in steady) / len(steady)
  mfu = sum(row.get("mfu", 0) for row in steady) / len(steady)
  share = f", MFU {mfu:.1%}" if mfu else ""
  peak = max(row["memory_bytes"] for row in train) / 2**30
  lives = goodput.lives(workdir)
  total = goodput.account(lives)
  wall = max(sum(total.values()), 1e-9)
  spent = sorted(((s, n) for n, s in total.items() if s >= 0.05), reverse=True)
  lines = [(n, f"{s:,.1f}", f"{s / wall:.1%}") for s, n in spent]
  return [
    "## Time", "",
    f"{rate:,.0f} tokens a second{share}; at most {peak:.1f} GiB of a device's "
    f"memory; goodput {total['step'] / wall:.1%} of {wall:,.0f} s in "
    f"{_count(len(lives), 'life', 'lives')}.",
    "", *_table(("spent on", "seconds", "share"), lines, "lrr"),
  ]  # fmt: skip


def _samples(texts: list[sinks.Text]) -> list[str]:
  if not texts:
    return []
  last = texts[-1].step
  shown = [text for text in texts if text.step == last][:_N_SAMPLES]
  lines = ["## Samples", "", f"At step {last:,}; all are in samples.txt."]
  for text in shown:
    said, n = text.text[:_SAMPLE_CHARACTERS], len(text.text)
    fence = max(re.findall("`{3,}", said), key=len, default="``") + "`"
    lines += ["", f"{fence}text", said, fence]
    if n > _SAMPLE_CHARACTERS:
      lines.append(f"({n - _SAMPLE_CHARACTERS:,} more characters)")
  return lines


def _settings(
  settings: Mapping[str, Any], lives: Sequence[Mapping[str, Any]]
) -> list[str]:
  lines = ["## Settings", ""]
  if lives:
    given = dict(o.split("=", 1) for o in lives[-1]["overrides"] if "=" in o)
    chosen = lives[-1]["settings"]
    rows = [
      (
        f"`{key}`",
        _code(chosen[key]),
        "command line" if key in given else "page",
      )
      for key in chosen
    ]
    head = ("setting", "value", "set by")
    told = "What is not as the code has it by default:"
    lines += [told, "", *_table(head, rows, "lll"), ""]
  whole = json.dumps(settings, indent=1)
  return [
    *lines,
    "<details><summary>all settings</summary>", "",
    "```json", whole, "```", "", "</details>",
  ]  # fmt: skip


def _lineage(
  workdir: epath.Path, lives: Sequence[Mapping[str, Any]]
) -> list[str]:
  if not lives:
    return []
  life = lives[-1]
  parent = "none: it began from random numbers"
  if life["parent"]:
    parent = f"{_code(life['parent'])}, sha256 `{life['parent_sha256']}`"
  versions = ", ".join(f"{k} {v}" for k, v in life["versions"].items())
  rows = [
    ("checkpoint", _checkpoint(workdir)),
    ("parent", parent),
    ("data", f"{_code(life['data'])}, sha256 `{life['data_sha256']}`"),
    ("tokenizer", f"sha256 `{life['tokenizer_sha256']}`"),
    ("page", _code(life["page"] or "that of the workdir")),
    ("command", _code(life["command"])),
    ("code", _revision(life["git"])),
    ("versions", versions),
    ("devices", f"{life['devices']}, on {_count(life['n_hosts'], 'host')}"),
    ("began", f"{life['time']} at step {life['from_step']:,}"),
  ]
  lines = ["## Lineage", "", *_table(("", ""), rows, "ll")]
  if lives[1:]:
    lines += ["", "That is the last life; those before:", ""]
    keys = ("time", "from_step", "git", "devices", "command")
    rows = [[str(life[key]) for key in keys] for life in lives[:-1]]
    lines += _table(("began", "at step", "code", "devices", "command"), rows)
  return lines


def _checkpoint(workdir: epath.Path) -> str:
  steps = checkpoint.steps(workdir)
  if not steps:
    return "none"
  path = workdir / "checkpoints" / str(steps[-1])
  return f"{_code(path)}, sha256 `{manifest.digest(path)}`"


def _revision(git: str | None) -> str:
  if git is None:
    return "unknown: no git there"
  if git.endswith("+"):
    return f"git `{git[:-1]}`, **with changes that are not committed**"
  return f"git `{git}`, as committed"


def _count(n: int, one: str, more: str = "") -> str:
  return f"{n} {one if n == 1 else more or one + 's'}"


def _code(value: Any) -> str:
  return f"`{value}`" if f"{value}" else ""


def _table(
  head: Iterable[str], rows: Iterable[Sequence[str]], sides: str = ""
) -> list[str]:
  """A table in Markdown; sides are l or r, one a column."""
  head = list(head)
  rule = [{"r": "---:"}.get(s, "---") for s in sides.ljust(len(head), "l")]
  cells = [[c.replace("|", "\\|") for c in row] for row in rows]
  return [f"| {' | '.join(row)} |" for row in (head, rule, *cells)]
