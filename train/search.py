"""Searches for settings: each trial is a run, drawn where runs before ended low.

    python -m train.search --config=configs/sweeps/micro.py --workdir=runs/search

A page with a search has `get_search(arg)`: the settings that are drawn and their
laws, the figure, its goal (train/core/searching.py). Trials are made one after the
other in WORKDIR/NUMBER, until --trials have ended; several hosts that share
--storage (by default WORKDIR/study.db) make them side by side. Killed and started
again, a search goes on, and so does the run that was cut. Needs the extra `search`.

The table goes to WORKDIR/table.md; the last line is JSON: the best trial.
Exits with 75 where it was asked to stop.
"""

import json

from absl import flags
from etils import epath

from configs import door
from data import prepare
from models import durable
from train import pretrain
from train.core import preemption, searching, sinks, sweeps

_TRIALS = flags.DEFINE_integer("trials", 20, "that end, of all hosts", 1)
_STORAGE = flags.DEFINE_string("storage", "", "database; WORKDIR/study.db")

SECTIONS = pretrain.SECTIONS


def main(config: door.Config, workdir: epath.Path) -> int:
  """Draws, runs, tells."""
  spec = flags.FLAGS.config
  if not spec:
    raise ValueError("--config=PAGE.py is missing: a search is part of a page.")
  search = searching.Search(**door.ask_page(spec, "get_search"))
  workdir.mkdir(parents=True, exist_ok=True)
  url = _STORAGE.value or f"sqlite:///{workdir}/study.db"
  study = searching.study(search, url, spec)
  page, code = config.to_dict(), 0

  def objective(number, overrides, report):
    run = sweeps.make(page, number, overrides, SECTIONS, workdir)
    text = run.config.data
    folder = prepare.folder(text, run.folder)
    prepare.prepare(text, run.config.tokenizer, folder)
    print(f"trial {number}: {_told(overrides)}", flush=True)
    told: dict[int, bool] = {}  # step -> whether to end there

    def is_over() -> bool:
      for row in sinks.rows(run.folder):
        if search.metric in row and row["step"] not in told:
          told[row["step"]] = report(row["step"], row[search.metric])
      return any(told.values())

    code = sweeps.start(run, sweeps.program("train.pretrain"), is_over)
    is_behind = is_over()
    if code == preemption.EXIT_CODE and not is_behind:
      raise searching.Stopped
    if code not in (0, preemption.EXIT_CODE) or not told:
      raise RuntimeError(f"{run.folder / 'output.txt'} says what went wrong")
    figure = run.figures[search.metric]
    ending = ", behind others: ended" if is_behind else ""
    print(f"  {search.metric} {figure:.4f}{ending}", flush=True)
    return figure

  try:
    searching.run(study, search, objective, _TRIALS.value)
  except searching.Stopped:
    code = preemption.EXIT_CODE
  table = searching.table(study, search.metric)
  durable.write_text(workdir / "table.md", table)
  print(table, end="")
  if any(t.value is not None for t in study.get_trials(deepcopy=False)):
    best = study.best_trial
    print(
      json.dumps(
        {"trial": best.number, search.metric: best.value, **best.params}
      )
    )
  return code


def _told(overrides) -> str:
  return ", ".join(f"{k}={v}" for k, v in overrides.items())


if __name__ == "__main__":
  door.run(main, SECTIONS)
