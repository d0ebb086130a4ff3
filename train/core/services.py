"""W&B and MLflow: runs that a service keeps, or its files in the workdir.

Neither forgets: W&B takes steps in their order only, MLflow deletes no number.
A run that goes back to a step behind which they have something begins a new run
of theirs, with all up to there copied; MLflow's old one goes into its trash,
W&B's stays beside the new one, in the same group. What W&B keeps offline cannot
be gone on with at all: every life of a run is a new, whole one of theirs.
"""

import collections
import html
import json
import logging
import os
import time
import uuid
from typing import Any, Literal, Protocol, runtime_checkable

from etils import epath

from configs import fields
from train.core.sinks import Past, Row, Text

_N_AT_ONCE = 1000  # metrics that a server of MLflow takes in one request
_N_PARAMS = 100  # and parameters
_PARAM_LENGTH = 500


@runtime_checkable
class Names(Protocol):
  """What a service needs to know: train.core.track.Config has it."""

  project: str
  name: str
  mlflow_uri: str
  wandb_mode: Literal["online", "offline"]


class Wandb:
  """A run of Weights & Biases.

  Args:
    workdir: of the run; W&B's own files go to WORKDIR/wandb.
    names: what it is called.
    settings: the resolved config, plain data.
  """

  def __init__(
    self, workdir: epath.Path, names: Names, settings: dict[str, Any]
  ):
    self._workdir, self._names, self._settings = workdir, names, settings
    self._kept = _Id(workdir / "wandb", f"{names.wandb_mode} {names.project}")
    self._run = None

  def begin(self, past: Past) -> None:
    """Goes on with the run, or begins one."""
    self.close()
    wandb, is_online = _wandb(), self._names.wandb_mode == "online"
    known = self._kept.read() if is_online and not past.is_cut else None
    name = self._names.name or self._workdir.name
    self._run = wandb.init(
      project=self._names.project,
      group=name,
      name=name,
      id=known or uuid.uuid4().hex[:12],
      resume="must" if known else "never" if is_online else None,
      mode=self._names.wandb_mode,
      dir=str(self._workdir),
      config=self._settings,
      settings=wandb.Settings(silent=True, console="off"),
    )
    self._kept.write(self._run.id)
    if known:
      return
    rows = [(row["step"], self.row, _arguments(row)) for row in past.rows]
    texts = [(text.step, self.text, (text,)) for text in past.texts]
    for _, act, arguments in sorted(rows + texts, key=lambda call: call[0]):
      act(*arguments)

  def row(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Adds numbers to a step."""
    named = {f"{kind}/{key}": value for key, value in values.items()}
    self._run.log(named, step=step)

  def text(self, text: Text) -> None:
    """Adds a text to a step."""
    shown = _wandb().Html(f"<pre>{html.escape(text.text)}</pre>")
    self._run.log({text.name: shown}, step=text.step)

  def flush(self) -> None:
    """Has its own pace."""

  def close(self) -> None:
    """Ends the run, and waits until it is written or sent."""
    if self._run is not None:
      self._run.finish()
    self._run = None


class Mlflow:
  """A run of MLflow, on a server, in a database or in WORKDIR/mlflow.

  Args:
    workdir: of the run.
    names: what it is called.
    settings: the resolved config, plain data.
  """

  def __init__(
    self, workdir: epath.Path, names: Names, settings: dict[str, Any]
  ):
    self._workdir, self._names, self._settings = workdir, names, settings
    self._kept = _Id(workdir / "mlflow", names.mlflow_uri)
    self._client = self._id = None
    self._n_texts: collections.Counter = collections.Counter()

  def begin(self, past: Past) -> None:
    """Goes on with the run, or begins one."""
    self.close()
    folder = self._workdir / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    own = f"sqlite:///{folder / 'mlflow.db'}"
    self._client = _mlflow().MlflowClient(self._names.mlflow_uri or own)
    known = self._kept.read()
    if known and past.is_cut:
      self._client.delete_run(known)
      known = None
    if known:
      self._client.update_run(known, status="RUNNING")
      self._id = known
      return
    name = self._names.name or self._workdir.name
    run = self._client.create_run(self._experiment(), run_name=name)
    self._id = run.info.run_id
    self._describe()
    self._kept.write(self._id)
    self._log(past.rows)
    for text in past.texts:
      self.text(text)

  def row(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Adds numbers to a step."""
    self._log([{"step": step, "kind": kind, **values}])

  def text(self, text: Text) -> None:
    """Adds a file to the run; those of a step are told apart by a number."""
    place = f"{text.name}/{text.step}"
    n = self._n_texts[place]
    self._n_texts[place] += 1
    self._client.log_text(self._id, text.text, f"{place}/{n}.txt")

  def flush(self) -> None:
    """Has sent all."""

  def close(self) -> None:
    """Ends the run."""
    if self._id is not None:
      self._client.set_terminated(self._id)
    self._id = None

  def _experiment(self) -> str:
    name = self._names.project
    if found := self._client.get_experiment_by_name(name):
      return found.experiment_id
    place = None  # a server has its own
    if not self._names.mlflow_uri:
      place = str(self._workdir / "mlflow" / "artifacts")
    return self._client.create_experiment(name, artifact_location=place)

  def _describe(self) -> None:
    param = _mlflow().entities.Param
    params = [
      param(key, str(value)[:_PARAM_LENGTH])
      for key, value in fields.leaves(self._settings)
    ]
    for i in range(0, len(params), _N_PARAMS):
      self._client.log_batch(self._id, params=params[i : i + _N_PARAMS])

  def _log(self, rows: list[Row]) -> None:
    metric, now = _mlflow().entities.Metric, time.time_ns() // 10**6
    found = [
      metric(f"{row['kind']}/{key}", value, now, row["step"])
      for row in rows
      for key, value in _numbers(row).items()
    ]
    for i in range(0, len(found), _N_AT_ONCE):
      self._client.log_batch(self._id, metrics=found[i : i + _N_AT_ONCE])


class _Id:
  """Which run of a service is this one: a file in the workdir.

  Args:
    folder: of the service.
    where: the service keeps it; a run elsewhere is another one.
  """

  def __init__(self, folder: epath.Path, where: str):
    self._path, self._where = folder / "run.json", where

  def read(self) -> str | None:
    """The id, if there is one."""
    kept = json.loads(self._path.read_text()) if self._path.exists() else {}
    return kept.get(self._where)

  def write(self, name: str) -> None:
    """Keeps it for later lives."""
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._path.write_text(json.dumps({self._where: name}))


def _arguments(row: Row) -> tuple[int, str, dict[str, float]]:
  return row["step"], row["kind"], _numbers(row)


def _numbers(row: Row) -> dict[str, float]:
  return {k: v for k, v in row.items() if k not in ("step", "kind")}


def _wandb() -> Any:
  """The library; of itself it reports nothing to its makers."""
  os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
  import wandb

  return wandb


def _mlflow() -> Any:
  """The library; of itself it reports nothing to its makers."""
  os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
  import mlflow

  logging.getLogger("mlflow").setLevel(logging.WARNING)
  return mlflow
