"""A trial of a search is a run of its page, with what was drawn, in WORKDIR/NNN.

The figures that the run logs are reported as they come; a run that is over in the
eyes of the search is asked to stop, and saves.
"""

import dataclasses
import signal
from collections.abc import Mapping
from typing import Any

from etils import epath

from configs import common
from data import prepare
from train.core import preemption, searching, sinks, sweeps


@dataclasses.dataclass(frozen=True)
class Trials:
  """An objective of searching.py: number and settings to the figure.

  Attributes:
    page: what all trials have in common, plain data.
    sections: of train.pretrain.
    workdir: of the search.
    metric: the figure, by its name in metrics.jsonl.
  """

  page: Mapping[str, Any]
  sections: Mapping[str, Any]
  workdir: epath.Path
  metric: str

  def __call__(
    self,
    number: int,
    overrides: common.Override,
    report: searching.Report,
    is_asked: searching.IsAsked = lambda: False,
  ) -> float:
    """Makes a trial.

    Args:
      number: of its folder.
      overrides: the settings that were drawn.
      report: takes a step and its figure, once each; True ends the run.
      is_asked: asked every second; True stops the run, to go on another time.

    Raises:
      Stopped: the run was asked to stop, and not by `report`.
      RuntimeError: it failed; names the file that says why.
    """
    run = sweeps.make(self.page, number, overrides, self.sections, self.workdir)
    text = run.config.data
    prepare.prepare(
      text, run.config.tokenizer, prepare.folder(text, run.folder)
    )
    told: dict[int, bool] = {}  # step -> whether to end there

    def is_behind() -> bool:
      for row in sinks.rows(run.folder):
        if self.metric in row and row["step"] not in told:
          told[row["step"]] = report(row["step"], row[self.metric])
      return any(told.values())

    program = sweeps.program("train.pretrain")
    code = sweeps.start(run, program, lambda: is_behind() or is_asked())
    was_behind = is_behind()
    stopped = {preemption.EXIT_CODE}
    if was_behind or is_asked():
      stopped.add(-signal.SIGTERM)  # a run that did not listen yet
    if code in stopped and not was_behind:
      raise searching.Stopped
    if code not in {0, *stopped} or not told:
      raise RuntimeError(f"{run.folder / 'output.txt'} says what went wrong")
    return run.figures[self.metric]
