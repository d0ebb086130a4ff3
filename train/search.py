"""Searches for settings: each trial is a run, drawn where runs before ended low.

    python -m train.search --config=configs/sweeps/micro.py --workdir=runs/search

A page with a search has `get_search(arg)`: the settings that are drawn and their
laws, the figure, its goal (train/core/searching.py). Trials are made one after the
other in WORKDIR/NUMBER, until --trials have ended; several hosts that share
--storage (by default WORKDIR/study.db) make them side by side. Killed and started
again, a search goes on, and so does the run that was cut. Needs the extra `search`.

    python -m train.search --config=configs/sweeps/micro.py --workdir=runs/search --by=ray --takes=CPU=1

Ray Tune makes the same trials side by side, on this machine or, with --address, on
the hosts of a cluster that see WORKDIR (train/core/rays.py). Each takes a whole
host, or what --takes says. Needs the extra `ray`.

The table goes to WORKDIR/table.md; the last line is JSON: the best trial.
Exits with 75 where it was asked to stop.
"""

import json

from absl import flags
from etils import epath

from configs import door
from models import durable
from train import pretrain
from train.core import preemption, rays, searching, trials

_TRIALS = flags.DEFINE_integer("trials", 20, "that end, of all hosts", 1)
_STORAGE = flags.DEFINE_string("storage", "", "database; WORKDIR/study.db")
_BY = flags.DEFINE_enum("by", "optuna", ["optuna", "ray"], "who makes trials")
_ADDRESS = flags.DEFINE_string("address", "", "of a Ray cluster, as HOST:6379")
_TAKES = flags.DEFINE_list(
  "takes", [], "of a Ray cluster, for a trial: CPU=4,GPU=1"
)

SECTIONS = pretrain.SECTIONS


def main(config: door.Config, workdir: epath.Path) -> int:
  """Draws, runs, tells."""
  spec = flags.FLAGS.config
  if not spec:
    raise ValueError("--config=PAGE.py is missing: a search is part of a page.")
  by_ray, takes = _BY.value == "ray", _takes()
  if not by_ray and (_ADDRESS.value or takes):
    raise ValueError("--address and --takes are of Ray: add --by=ray.")
  search = searching.Search(**door.ask_page(spec, "get_search"))
  workdir.mkdir(parents=True, exist_ok=True)
  url = _STORAGE.value or f"sqlite:///{workdir}/study.db"
  place = workdir.resolve() if by_ray else workdir
  objective = trials.Trials(config.to_dict(), SECTIONS, place, search.metric)
  code, n = 0, _TRIALS.value
  try:
    if by_ray:
      with rays.cluster(_ADDRESS.value):
        study = searching.study(search, url, spec)
        rays.run(study, search, objective, n, workdir, takes)
    else:
      study = searching.study(search, url, spec)
      searching.run(study, search, objective, n)
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


def _takes() -> dict[str, float]:
  """What --takes says, by the names of Ray."""
  try:
    return {k: float(n) for k, n in (pair.split("=") for pair in _TAKES.value)}
  except ValueError:
    raise ValueError(
      f"--takes={','.join(_TAKES.value)}: expected numbers by name, as CPU=4,GPU=1."
    ) from None


if __name__ == "__main__":
  door.run(main, SECTIONS)
