"""Search: settings are drawn where runs before ended low.

TPE (Bergstra et al., NeurIPS 2011) draws, Hyperband (arXiv 1603.06560) ends what
falls behind; both are optuna's. The study lies in a database, which many hosts may
share. A trial whose process was killed is made again, in the same folder: its run
goes on.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from configs import common

Law = Sequence[Any]  # as in configs.common.sample
# (number of the folder, settings, report) to the figure; report(step, figure) tells
# how the run stands, and says whether to end it. Where runs are elsewhere, a fourth
# argument, is_asked, says whether to stop.
Report = Callable[[int, float], bool]
IsAsked = Callable[[], bool]  # whether to stop, and go on another time
Objective = Callable[..., float]
_HEARTBEAT_SECONDS = 10
MOST_FAILED = 3  # runs in a row


Study = Any  # of optuna
Trial = Any


class Stopped(Exception):
  """The search was asked to stop: its trial is to be made again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """What is searched: a page's `get_search(arg)` gives one as a dict."""

  laws: Mapping[str, Law]
  metric: str = "heldout_loss"
  goal: str = "minimize"  # or maximize
  sampler: str = "tpe"  # or random
  pruned: bool = False  # whether Hyperband ends what falls behind
  seed: int = 0

  def __post_init__(self):
    if not self.laws:
      raise ValueError("laws={} leaves nothing to search.")
    for name, options in (
      ("goal", ("minimize", "maximize")),
      ("sampler", ("tpe", "random")),
    ):
      if getattr(self, name) not in options:
        raise ValueError(
          f"{name}={getattr(self, name)!r}: expected {' or '.join(options)}."
        )


def _optuna() -> Any:
  """The library.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import optuna
  except ImportError as error:
    raise ValueError(
      "optuna is not installed, and searches need it: pip install -e '.[search]'."
    ) from error
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
  return optuna


def study(search: Search, url: str, name: str) -> Study:
  """Opens a study, or begins it.

  Args:
    search: what is searched.
    url: of the database, as sqlite:///runs/search/study.db.
    name: of the study in it.
  """
  optuna = _optuna()
  again = optuna.storages.RetryHeartbeatStaleTrialCallback()
  storage = optuna.storages.RDBStorage(
    url,
    heartbeat_interval=_HEARTBEAT_SECONDS,
    grace_period=3 * _HEARTBEAT_SECONDS,
    heartbeat_stale_trial_callback=again,
  )
  try:
    n_before = len(optuna.load_study(study_name=name, storage=storage).trials)
  except KeyError:
    n_before = 0
  seed = search.seed + 1_000_003 * n_before  # else it would draw the same again
  sampler = {
    "tpe": optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "random": optuna.samplers.RandomSampler(seed=seed),
  }[search.sampler]
  nop = optuna.pruners.NopPruner()
  return optuna.create_study(
    storage=storage,
    study_name=name,
    sampler=sampler,
    pruner=optuna.pruners.HyperbandPruner() if search.pruned else nop,
    direction=search.goal,
    load_if_exists=True,
  )


def run(
  made: Study, search: Search, objective: Objective, n_trials: int
) -> None:
  """Makes trials until so many have ended, of all hosts together.

  Args:
    made: the study.
    search: what is searched.
    objective: a trial. A RuntimeError is a run that failed: others go on.
    n_trials: that end, well or pruned.

  Raises:
    Stopped: the objective was asked to stop.
    ValueError: several runs failed, one after the other.
  """
  optuna = _optuna()
  enough = optuna.study.MaxTrialsCallback(n_trials, states=_ended())
  again = optuna.storages.RetryHeartbeatStaleTrialCallback()
  failed: list[str] = []

  def one(trial: Trial) -> float:
    number = folder(made, trial.number)
    overrides = {k: _draw(trial, k, law) for k, law in search.laws.items()}

    is_behind = False
    print(begun(number, overrides), flush=True)

    def report(step: int, figure: float) -> bool:
      nonlocal is_behind
      trial.report(figure, step)
      is_behind = is_behind or trial.should_prune()
      return is_behind

    try:
      figure = objective(number, overrides, report)
    except Stopped:
      again(made, made.trials[trial.number])
      raise
    except RuntimeError as error:
      failed.append(str(error))
      if len(failed) == MOST_FAILED:
        raise ValueError(
          f"{len(failed)} runs failed, one after the other: {'; '.join(failed)}"
        ) from error
      raise
    failed.clear()
    print(ended(number, search.metric, figure, is_behind), flush=True)
    if is_behind:
      raise optuna.TrialPruned
    return figure

  if n_ended(made) < n_trials:
    made.optimize(one, callbacks=[enough], catch=(RuntimeError,))


def n_ended(made: Study) -> int:
  """Trials that ended, well or pruned, of all hosts."""
  return len(made.get_trials(deepcopy=False, states=_ended()))


def _ended() -> tuple[Any, ...]:
  states = _optuna().trial.TrialState
  return states.COMPLETE, states.PRUNED


def folder(made: Study, number: int) -> int:
  """The number of a trial's folder: of the one that it makes again, or its own."""
  again = _optuna().storages.RetryHeartbeatStaleTrialCallback
  first = again.retried_trial_number(made.trials[number])
  return number if first is None else first


def begun(number: int, overrides: common.Override) -> str:
  """The line for a trial that begins."""
  settings = ", ".join(f"{k}={v}" for k, v in overrides.items())
  return f"trial {number}: {settings}"


def ended(number: int, metric: str, figure: float, is_behind: bool) -> str:
  """The line for one that ended."""
  ending = ", behind others: ended" if is_behind else ""
  return f"trial {number}: {metric} {figure:.4f}{ending}"


def remake(made: Study, trial: Trial) -> None:
  """Has a trial that was cut made once more, in its folder."""
  fail(made, trial.number)
  _optuna().storages.RetryHeartbeatStaleTrialCallback()(made, trial)


def fail(made: Study, number: int) -> None:
  """Ends a trial whose run failed."""
  made.tell(number, state=_optuna().trial.TrialState.FAIL)


def end(made: Study, trial: Trial, figure: float, is_behind: bool) -> None:
  """Ends a trial, well or as one that fell behind."""
  states = _optuna().trial.TrialState
  if is_behind:
    made.tell(trial, state=states.PRUNED)
  else:
    made.tell(trial, figure)


def _draw(trial: Trial, key: str, law: Law) -> Any:
  kind = law[0] if len(law) == 3 else None
  if kind in ("log", "uniform"):
    whole = all(isinstance(x, int) for x in law[1:])
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(key, law[1], law[2], log=kind == "log")
  return trial.suggest_categorical(key, list(law))


def table(made: Study, metric: str) -> str:
  """All trials, the best first, in Markdown."""
  trials = made.get_trials(deepcopy=False)
  sign = 1 if made.direction.name == "MINIMIZE" else -1
  order = sorted(
    trials,
    key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number),
  )
  keys = list(dict.fromkeys(key for t in order for key in t.params))
  rows = [["trial", *keys, metric, "state"]]
  rows.append(["---"] * len(rows[0]))
  for t in order:
    drawn = [_shown(t.params.get(key, "")) for key in keys]
    value = "" if t.value is None else f"{t.value:.4f}"
    rows.append([str(t.number), *drawn, value, t.state.name.lower()])
  return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _shown(value: Any) -> str:
  return f"{value:.3g}" if isinstance(value, float) else str(value)
