"""Measures a checkpoint on the held-out text of the config it was trained with.

    python -m train.evaluate --workdir=runs/quick

--workdir is a run, whose newest checkpoint is taken, or a checkpoint, which is
enough by itself: its text is prepared again where no store lies beside it. The
figures go to the terminal and, for a run, to WORKDIR/evaluation.json.

    python -m train.evaluate --workdir=runs/smollm2 --results=runs/figures \
      --task=configs/tasks/piqa.py:rows=piqa.jsonl

measures tasks instead; --task may be repeated. Each leaves TITLE.json and a
record for each item in --results (for a run, WORKDIR/evaluation by default), beside
report.md of all that lies there. Killed and started again, it goes on.
"""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator

import jax
from absl import flags
from etils import epath

from configs import door
from data import pipeline, prepare
from data import tokenizer as tokenizers
from models import checkpoint, families, sampling
from sharding import mesh
from train.core import conflicts, setup, track
from train.evaluators import session, suite
from train.objectives import choice

_TASK = flags.DEFINE_multi_string(
  "task", [], "page PATH.py[:arg] of configs/tasks/; may be repeated"
)
_RESULTS = flags.DEFINE_string("results", "", "folder for what tasks come to")

SECTIONS = {
  "model": families.FAMILIES,
  "tokenizer": tokenizers.Config,
  "data": prepare.Config,
  "batch": pipeline.Config,
  "objective": choice.CONFIGS,
  "mesh": mesh.Config,
  "eval": suite.Config,
  "generate": sampling.Config,
}


def main(config: door.Config, workdir: epath.Path) -> None:
  """Loads, evaluates, reports."""
  conflicts.check(config)
  path = checkpoint.find(workdir)
  door.agree(config, path, SECTIONS, ("model",), track.terminal().say)
  if _TASK.value:
    out = epath.Path(_RESULTS.value) if _RESULTS.value else None
    session.measure(config, workdir, out, _TASK.value, track.terminal().say)
    return
  if _RESULTS.value:
    raise ValueError(
      "--results is where the results of --task go: give a task."
    )
  with _text_of(config, path) as (config, folder):
    s = setup.begin(config, folder)
    setup.check_tokenizer(path, s.store)
    tracker = track.terminal()
    _, params = checkpoint.load(path, s.layout)
    tracker.say(f"evaluating {path}")
    objective = choice.make(
      config.objective, s.model, s.store.tokenizer.word_edges
    )
    evaluators = suite.make(
      config.eval.final, config.eval, config.generate, s, tracker, objective
    )
    step = json.loads((path / "card.json").read_text())["step"]
    found = {"step": step}
    for evaluator in evaluators.values():
      found.update(evaluator(params, step))
  for name, value in found.items():
    tracker.say(f"  {name:<24}{value:12.4f}")
  if path != workdir and jax.process_index() == 0:
    (workdir / "evaluation.json").write_text(json.dumps(found, indent=1))


@contextlib.contextmanager
def _text_of(
  config: door.Config, path: epath.Path
) -> Iterator[tuple[door.Config, epath.Path]]:
  """The config and the folder with the store that fit a checkpoint."""
  run = path.parent.parent
  if config.data.path or (run / "store").exists():
    yield config, run
    return
  own = tokenizers.Config(
    kind="saved", path=str(path), vocab_size=config.tokenizer.vocab_size
  )
  with tempfile.TemporaryDirectory() as folder:
    sections = {**config.sections, "tokenizer": own}
    yield dataclasses.replace(config, sections=sections), epath.Path(folder)


if __name__ == "__main__":
  door.run(main, SECTIONS)
