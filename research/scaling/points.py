"""What a law is fitted to: runs as points of N, D and loss.

N is the number of parameters, D of tokens trained on, loss in nats a token. The
compute is C = 6 N D FLOPs (2001.08361).
"""

import csv
import dataclasses
from collections.abc import Iterable

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from configs import door
from data import pipeline
from models import families, flops
from train.core import loop, sinks

FLOPS = 6.0  # of training, for a parameter and a token
_SECTIONS = {
  "model": families.FAMILIES,
  "batch": pipeline.Config,
  "train": loop.Config,
}


@dataclasses.dataclass(frozen=True)
class Points:
  """Runs side by side; [P] each."""

  n: Float[np.ndarray, "P"]  # parameters
  d: Float[np.ndarray, "P"]  # tokens
  loss: Float[np.ndarray, "P"]  # nats a token

  def __post_init__(self):
    for name in ("n", "d", "loss"):
      values = getattr(self, name)
      bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
      if len(bad):
        raise ValueError(
          f"{name}={values[bad[0]]} of point {bad[0] + 1}: a law is fitted to "
          "positive numbers. Leave out runs that did not end."
        )

  def __len__(self) -> int:
    return len(self.n)

  @property
  def c(self) -> Float[np.ndarray, "P"]:
    """FLOPs of training."""
    return FLOPS * self.n * self.d

  def __getitem__(self, chosen: Int[np.ndarray, "Q"]) -> "Points":
    return Points(self.n[chosen], self.d[chosen], self.loss[chosen])


def of(n: Iterable[float], d: Iterable[float], loss: Iterable[float]) -> Points:
  """Points of three columns."""
  return Points(*(np.array([*x], np.float64) for x in (n, d, loss)))


def read(path: epath.Path) -> Points:
  """Points of a CSV file with the columns N, D and loss; others are passed over.

  Raises:
    ValueError: there is no such file, a column is missing, or a cell is no number.
  """
  if not path.exists():
    raise ValueError(f"{path} does not exist: give a CSV file with N, D, loss.")
  with path.open() as file:
    table = csv.DictReader(file)
    have = table.fieldnames or ()
    if missing := [x for x in ("N", "D", "loss") if x not in have]:
      raise ValueError(
        f"{path} has no column {missing[0]}, but {', '.join(have) or 'none'}: "
        "its first line names N (parameters), D (tokens) and loss (nats)."
      )
    found = []
    for number, row in enumerate(table, 2):
      try:
        found.append([float(row[name]) for name in ("N", "D", "loss")])
      except (TypeError, ValueError):
        raise ValueError(
          f"{path}:{number}: {dict(row)} is no row of numbers."
        ) from None
  return of(*zip(*found, strict=True)) if found else of((), (), ())


def of_runs(workdirs: Iterable[epath.Path]) -> Points:
  """The last held-out loss of finished runs, by their own configs and logs.

  Raises:
    ValueError: a run is not finished, or did not look at held-out text.
  """
  rows = [_of_run(workdir) for workdir in workdirs]
  return of(*zip(*rows, strict=True)) if rows else of((), (), ())


def _of_run(workdir: epath.Path) -> tuple[float, float, float]:
  config = door.load(workdir / "config.json", _SECTIONS)
  steps, batch = config.train.steps, config.batch
  for row in reversed(sinks.rows(workdir)):
    if row["step"] == steps and "heldout_loss" in row:
      n_tokens = steps * batch.size * batch.length
      return flops.n_params(config.model), n_tokens, row["heldout_loss"]
  raise ValueError(
    f"{workdir} has no held-out loss at its last step, {steps}: let it run to "
    "the end, with 'perplexity' in eval.during."
  )
