"""Runs the sweep of a page, one run after the other, or one of them.

    python -m train.sweep --config=configs/sweeps/micro.py --workdir=runs/micro

A page with a sweep has `get_sweep(arg)`, which gives a list of overrides: grid, zip,
chain, sample and isoflop of configs/common.py build it. Each run is `train.pretrain`
in a process and a folder of its own, WORKDIR/INDEX. Again: what is done is skipped,
what was cut or failed goes on. --index=3 makes that run only, as an array of SLURM
does with --index=$SLURM_ARRAY_TASK_ID; --table starts nothing. All write the
table of all runs to WORKDIR/table.md, and N, D, loss to WORKDIR/points.csv.

Exits with 1 where a run failed, with 75 where it was asked to stop.
"""

from absl import flags
from etils import epath

from configs import door
from data import prepare
from models import durable
from train import pretrain
from train.core import preemption, sweeps

_INDEX = flags.DEFINE_integer("index", None, "this run only, from 0")
_TABLE = flags.DEFINE_boolean("table", False, "only tells how the runs stand")
_METRIC = flags.DEFINE_string("metric", "heldout_loss", "that the table shows")

SECTIONS = pretrain.SECTIONS


def main(config: door.Config, workdir: epath.Path) -> int:
  """Plans, runs, tells."""
  spec = flags.FLAGS.config
  if not spec:
    raise ValueError(
      "--config=PAGE.py is missing: a sweep is a part of a page."
    )
  overrides = door.ask_page(spec, "get_sweep")
  runs = sweeps.plan(config.to_dict(), overrides, SECTIONS, workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  code = 0 if _TABLE.value else _start(_chosen(runs))
  table = sweeps.table(runs, _METRIC.value)
  durable.write_text(workdir / "table.md", table)
  points = sweeps.points(runs, _METRIC.value)
  durable.write_text(workdir / "points.csv", points)
  print(table, end="")
  return code


def _chosen(runs: list[sweeps.Run]) -> list[sweeps.Run]:
  index = _INDEX.value
  if index is None:
    return runs
  if not 0 <= index < len(runs):
    raise ValueError(
      f"--index={index}: the sweep has {len(runs)} runs, 0 to {len(runs) - 1}."
    )
  return [runs[index]]


def _start(runs: list[sweeps.Run]) -> int:
  """The worst exit code; a run that was asked to stop ends the sweep."""
  todo = [run for run in runs if run.status != "done"]
  if len(todo) < len(runs):
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done already")
  worst = 0
  for run in todo:
    own = ", ".join(f"{k}={v}" for k, v in run.overrides.items())
    print(f"run {run.index}: {own}", flush=True)
    data = run.config.data
    prepare.prepare(
      data, run.config.tokenizer, prepare.folder(data, run.folder)
    )
    code = sweeps.start(run, sweeps.program("train.pretrain"))
    seconds = (run.outcome or {})["seconds"]
    print(f"  {run.status} after {seconds:,.0f} s", flush=True)
    if code == preemption.EXIT_CODE:
      return code
    if code:
      worst = 1
      print(f"  its last lines are in {run.folder / 'output.txt'}", flush=True)
  return worst


if __name__ == "__main__":
  door.run(main, SECTIONS)
