"""A sweep: runs of one page with other settings each, in folders of their own.

WORKDIR/store       the text, prepared once for all runs that read the same
WORKDIR/007         a run as any other; and how it ended, in outcome.json
WORKDIR/table.md    all of them
WORKDIR/points.csv  N, D, loss of those that are done: what a law is fitted to
"""

import contextlib
import copy
import csv
import dataclasses
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from configs import common, door
from models import durable, flops
from train.core import conflicts, preemption, sinks

Status = Literal["waiting", "cut", "failed", "done"]
_POLL_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclasses.dataclass(frozen=True)
class Run:
  """One of a sweep."""

  index: int
  folder: epath.Path
  overrides: common.Override
  config: door.Config

  @property
  def outcome(self) -> dict[str, Any] | None:
    """Exit code and seconds of all its lives, once it was started."""
    path = self.folder / "outcome.json"
    return json.loads(path.read_text()) if path.exists() else None

  @property
  def status(self) -> Status:
    """How far it came."""
    if (outcome := self.outcome) is None:
      return "waiting"
    if outcome["code"] in (0, preemption.EXIT_CODE):
      return "cut" if outcome["code"] else "done"
    return "failed"

  @property
  def figures(self) -> dict[str, float]:
    """The last of every figure that it logged."""
    found: dict[str, float] = {}
    for row in sinks.rows(self.folder):
      found |= {k: v for k, v in row.items() if k not in ("kind", "step")}
    return found


def plan(
  page: Mapping[str, Any],
  sweep: Sequence[common.Override],
  sections: Mapping[str, Any],
  workdir: epath.Path,
) -> list[Run]:
  """The runs of a sweep, each with its resolved config.

  Args:
    page: what all have in common, plain data.
    sweep: what each has of its own.
    sections: of the entrypoint.
    workdir: of the sweep.

  Raises:
    ValueError: a setting is wrong; names the run.
  """
  return [
    make(page, index, overrides, sections, workdir)
    for index, overrides in enumerate(sweep)
  ]


def make(
  page: Mapping[str, Any],
  index: int,
  overrides: common.Override,
  sections: Mapping[str, Any],
  workdir: epath.Path,
) -> Run:
  """One run of a sweep; as `plan` makes all of them."""
  changed = copy.deepcopy({k: dict(v) for k, v in page.items()})
  for key, value in overrides.items():
    _put(changed, key, value)
  if not changed["data"].get("path") and not _reads_other_text(overrides):
    changed["data"]["path"] = str(workdir / "store")
  try:
    config = door.build(changed, sections)
    conflicts.check(config)
  except ValueError as error:
    raise ValueError(f"run {index} of the sweep: {error}") from None
  return Run(index, workdir / f"{index:03}", overrides, config)


def _put(page: dict[str, Any], key: str, value: Any) -> None:
  *path, last = key.split(".")
  for name in path:
    page = page.setdefault(name, {})
  page[last] = value


def _reads_other_text(overrides: common.Override) -> bool:
  return any(key.split(".")[0] in ("data", "tokenizer") for key in overrides)


def start(
  run: Run,
  program: Sequence[str],
  is_over: Callable[[], bool] = lambda: False,
) -> int:
  """Starts or resumes a run in a process of its own, and waits for it.

  Signals that the main thread gets are handed on: the run saves, and says 75.

  Args:
    run: of a sweep.
    program: `python -m ...` without its workdir.
    is_over: asked every second; True asks the run to stop.

  Returns:
    Its exit code.

  Raises:
    ValueError: the folder holds a run with other settings.
  """
  settings = run.config.to_dict()
  path = run.folder / "config.json"
  if path.exists() and (kept := door.read(path)) != _plain(settings):
    apart = [k for k in settings if kept.get(k) != _plain(settings)[k]]
    raise ValueError(
      f"{run.folder} holds a run whose sections {', '.join(apart)} differ from "
      "the sweep's: give another --workdir, or remove that folder."
    )
  run.folder.mkdir(parents=True, exist_ok=True)
  door.write(path, settings)
  before, began = (run.outcome or {}).get("seconds", 0.0), time.monotonic()
  with (run.folder / "output.txt").open("a") as output:
    child = subprocess.Popen(
      [*program, f"--workdir={run.folder}"],
      stdout=output,
      stderr=subprocess.STDOUT,
    )
    # Elsewhere none can be heard: there, is_over asks the run to stop.
    is_main = threading.current_thread() is threading.main_thread()
    kept = {
      number: signal.signal(number, lambda number, _: child.send_signal(number))
      for number in (_SIGNALS if is_main else ())
    }
    try:
      while (code := _waited(child)) is None:
        if is_over():
          child.send_signal(signal.SIGTERM)
    finally:
      for number, handler in kept.items():
        signal.signal(number, handler)
  outcome = {"code": code, "seconds": before + time.monotonic() - began}
  durable.write_text(run.folder / "outcome.json", json.dumps(outcome))
  return code


def _waited(child: subprocess.Popen) -> int | None:
  with contextlib.suppress(subprocess.TimeoutExpired):
    return child.wait(_POLL_SECONDS)
  return None


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(settings))


def table(runs: Sequence[Run], metric: str) -> str:
  """All runs, one a row, in Markdown."""
  keys = list(dict.fromkeys(key for run in runs for key in run.overrides))
  head = ["run", *keys, "N", "D", metric, "tokens/s", "seconds", "status"]
  rows = [head, ["---"] * len(head)]
  for run in runs:
    figures, outcome = run.figures, run.outcome or {}
    rows.append(
      [
        str(run.index),
        *(str(run.overrides.get(key, "")) for key in keys),
        f"{n_params(run):,}",
        f"{n_tokens(run):,}",
        _number(figures.get(metric), ".4f"),
        _number(figures.get("tokens_per_second"), ",.0f"),
        _number(outcome.get("seconds"), ",.0f"),
        run.status,
      ]
    )
  return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def points(runs: Sequence[Run], metric: str) -> str:
  """N, D and loss of the runs that are done, as CSV."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(["N", "D", "loss"])
  for run in runs:
    if run.status == "done" and metric in run.figures:
      writer.writerow([n_params(run), n_tokens(run), run.figures[metric]])
  return out.getvalue()


def n_params(run: Run) -> int:
  """Of the model, all of them."""
  return flops.n_params(run.config.model)


def n_tokens(run: Run) -> int:
  """That the run is trained on, to its end."""
  batch = run.config.batch
  return run.config.train.steps * batch.size * batch.length


def _number(value: float | None, how: str) -> str:
  return "" if value is None else format(value, how)


def program(module: str) -> list[str]:
  """`python -m MODULE`, by this interpreter."""
  return [sys.executable, "-m", module]
