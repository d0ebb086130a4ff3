"""A search whose trials Ray Tune makes, side by side, on the hosts of a cluster.

The page's laws are Ray's search space. The study of searching.py draws from it and
keeps every trial: a search goes on whichever of both made the trials before. ASHA
(arXiv 1810.05934) ends what falls behind at its 1st, 3rd, 9th, ... figure.

Ray would kill what it ends. Here a run is asked by a file in WORKDIR/ray, saves and
ends by itself; every host sees WORKDIR under the same path.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from train.core import searching

_FIGURES = "n_figures"  # that a run has reported
_MOST_FIGURES = 3**12  # rungs of ASHA end here
_NUMBER = "trial"  # of a trial's folder, among its settings
_ENDED = "has_ended"  # in the last report of a run
_OWNED = "ray"  # the study's mark on a trial that a search by Ray has drawn
_STOP = "stop"  # the file that asks all runs to stop; one as 007 ends that run
_FACTOR = 3  # one of so many trials goes on from a rung


def _ray() -> Any:
  """The library.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import ray
    import ray.tune
    import ray.tune.search.optuna
  except ImportError as error:
    raise ValueError(
      "ray is not installed, and --by=ray needs it: pip install -e '.[ray]'."
    ) from error
  return ray


def space(laws: Mapping[str, searching.Law]) -> dict[str, Any]:
  """The laws as a search space of Ray: whole bounds give whole numbers."""
  tune = _ray().tune

  def domain(law: searching.Law) -> Any:
    kind = law[0] if len(law) == 3 else None
    if kind not in ("log", "uniform"):
      return tune.choice(list(law))
    low, high = law[1:]
    if all(isinstance(x, int) for x in (low, high)):  # theirs end below high
      draw = tune.lograndint if kind == "log" else tune.randint
      return draw(low, high + 1)
    return (tune.loguniform if kind == "log" else tune.uniform)(low, high)

  return {key: domain(law) for key, law in laws.items()}


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
  """Joins the cluster at an address, or starts one on this machine for a while.

  Raises:
    ValueError: there is none.
  """
  # Read as Ray is imported: its makers get no figures, it prints no tables, a trial
  # stays in the folder that the search was started in, Tune writes no logs of it.
  os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
  os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
  os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
  os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
  os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
  # A run that is stopped ahead of its first figure has none to tell.
  os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
  ray = _ray()
  quiet = {"log_to_driver": False, "logging_level": "ERROR"}
  if not address:
    ray.init("local", include_dashboard=False, **quiet)
  else:
    try:
      ray.init(address, **quiet)
    except ConnectionError as error:
      raise ValueError(
        f"--address={address}: no cluster answers. `ray start --head` tells the "
        "address of one; without --address one is started on this machine."
      ) from error
  try:
    yield
  finally:
    ray.shutdown()


def share(takes: Mapping[str, float]) -> dict[str, float]:
  """What a trial takes of the cluster, by default all of its best host.

  Args:
    takes: resources by Ray's names; {} is a whole host.

  Raises:
    ValueError: no host has so much.
  """
  hosts = [n["Resources"] for n in _ray().nodes() if n["Alive"]]
  kinds = ("TPU", "GPU", "CPU")
  best = max(hosts, key=lambda has: [has.get(kind, 0) for kind in kinds])
  whole = {kind: best[kind] for kind in kinds if best.get(kind)}
  if not any(
    all(has.get(kind, 0) >= n for kind, n in takes.items()) for has in hosts
  ):
    raise ValueError(
      f"--takes={_told(takes)}: no host has so much; the best one has "
      f"{_told(whole)}."
    )
  return dict(takes) or whole


def _told(takes: Mapping[str, float]) -> str:
  return ",".join(f"{kind}={n:g}" for kind, n in takes.items())


def run(
  made: searching.Study,
  search: searching.Search,
  objective: searching.Objective,
  n_trials: int,
  workdir: epath.Path,
  takes: Mapping[str, float],
) -> None:
  """Makes trials until so many have ended; as `searching.run`.

  Args:
    made: the study.
    search: what is searched.
    objective: a trial; takes `is_asked`, too.
    n_trials: that end, well or pruned.
    workdir: of the search; all hosts see it.
    takes: of the cluster, for a trial.

  Raises:
    Stopped: this process was asked to stop, and has asked the runs.
    ValueError: several runs failed, one after the other; another search by Ray
      is at work in the workdir.
  """
  tune = _ray().tune
  folder = workdir.resolve() / "ray"
  with _alone(folder), _listening(folder):
    drawing = _drawing(made, search, n_trials, folder)
    trial = tune.with_parameters(
      _trial, objective=objective, search=search, folder=folder
    )
    results = tune.Tuner(
      tune.with_resources(trial, share(takes)),
      param_space=space(search.laws),
      tune_config=tune.TuneConfig(
        metric=search.metric,
        mode={"minimize": "min", "maximize": "max"}[search.goal],
        num_samples=-1,
        search_alg=drawing,
        scheduler=_halving(folder) if search.pruned else None,
      ),
      run_config=tune.RunConfig(
        name="tune", storage_path=str(folder), verbose=0
      ),
    ).fit()
    if (folder / _STOP).exists():
      raise searching.Stopped
    if drawing.n_failed == searching.MOST_FAILED:
      words = [str(e).strip().splitlines()[-1] for e in results.errors]
      raise ValueError(
        f"{drawing.n_failed} runs failed, one after the other: "
        f"{'; '.join(words[-drawing.n_failed :])}"
      )


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[None]:
  """Empties the folder of Ray's own files, which no other search uses now."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  with open(folder.parent / "ray.lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f"{folder.parent} is in use: another search by Ray is at work there. End "
        "it, or give another --workdir."
      ) from None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield


@contextlib.contextmanager
def _listening(folder: epath.Path) -> Iterator[None]:
  """Asks all runs to stop where this process is asked to; a second time ends it."""
  numbers = (signal.SIGTERM, signal.SIGINT)
  kept = {number: signal.getsignal(number) for number in numbers}

  def put_back() -> None:
    for number, handler in kept.items():
      signal.signal(number, handler)

  def ask(*_) -> None:
    (folder / _STOP).touch()
    put_back()

  for number in numbers:
    signal.signal(number, ask)
  try:
    yield
  finally:
    put_back()


def _trial(
  config: Mapping[str, Any],
  objective: searching.Objective,
  search: searching.Search,
  folder: epath.Path,
) -> None:
  """A trial, on any host; one that is asked to stop tells no ending."""
  tune, number = _ray().tune, config[_NUMBER]
  is_asked = (folder / _STOP).exists
  n_figures = 0

  def report(step: int, figure: float) -> bool:
    nonlocal n_figures
    n_figures += 1
    # Comes back when the scheduler has decided.
    tune.report({search.metric: figure, "step": step, _FIGURES: n_figures})
    return (folder / str(number)).exists()

  if is_asked():
    return
  overrides = {key: config[key] for key in search.laws}
  with contextlib.suppress(searching.Stopped):
    figure = objective(number, overrides, report, is_asked)
    tune.report({search.metric: figure, _FIGURES: n_figures, _ENDED: True})


def _halving(folder: epath.Path) -> Any:
  """ASHA, which asks a run to end where it would kill its trial."""
  schedulers = _ray().tune.schedulers

  class Halving(schedulers.ASHAScheduler):
    def on_trial_result(self, controller, trial, result):
      decision = super().on_trial_result(controller, trial, result)
      if decision == schedulers.TrialScheduler.STOP:
        (folder / str(trial.config[_NUMBER])).touch()
      return schedulers.TrialScheduler.CONTINUE

  return Halving(
    time_attr=_FIGURES,
    max_t=_MOST_FIGURES,
    reduction_factor=_FACTOR,
    stop_last_trials=False,
  )


def _drawing(
  made: searching.Study,
  search: searching.Search,
  n_trials: int,
  folder: epath.Path,
) -> Any:
  """The study as a searcher of Ray; what a killed search left is made again."""
  tune = _ray().tune
  # Ours beats not: that no other search by Ray is at work is known by the lock.
  warnings.filterwarnings("ignore", "Heartbeat of storage")

  class Drawing(tune.search.Searcher):
    def __init__(self):
      super().__init__()
      self.n_failed = 0  # one after the other
      self._open = {}  # Ray's name of a trial -> the study's trial, its folder
      self._space = {}

    def set_search_properties(self, metric, mode, config, **spec):
      convert = tune.search.optuna.OptunaSearch.convert_search_space
      self._metric, self._mode, self._space = metric, mode, convert(config)
      return True

    def suggest(self, trial_id):
      n_ended = searching.n_ended(made)
      failing = self.n_failed == searching.MOST_FAILED
      if n_ended >= n_trials or failing or (folder / _STOP).exists():
        return self.FINISHED
      if n_ended + len(self._open) >= n_trials:
        return None
      trial = made.ask(self._space)
      trial.set_user_attr(_OWNED, trial.number)
      number = searching.folder(made, trial.number)
      self._open[trial_id] = trial, number
      print(searching.begun(number, trial.params), flush=True)
      return {**trial.params, _NUMBER: number}

    def on_trial_result(self, trial_id, result):
      if _ENDED not in result and not result["done"]:
        self._open[trial_id][0].report(result[search.metric], result["step"])

    def on_trial_complete(self, trial_id, result=None, error=False):
      trial, number = self._open.pop(trial_id)
      if error:
        self.n_failed += 1
        searching.fail(made, trial.number)
        print(f"trial {number}: failed", flush=True)
      elif result and _ENDED in result:
        self.n_failed = 0
        is_behind = (folder / str(number)).exists()
        searching.end(made, trial, result[search.metric], is_behind)
        line = searching.ended(
          number, search.metric, result[search.metric], is_behind
        )
        print(line, flush=True)

    def save(self, checkpoint_path):
      epath.Path(checkpoint_path).touch()  # the study is saved already

  for trial in made.get_trials(deepcopy=False):
    is_ours = trial.user_attrs.get(_OWNED) == trial.number
    if is_ours and trial.state.name == "RUNNING":
      searching.remake(made, trial)
  return Drawing()
