"""Trains a language model from scratch, from text to a checkpoint that writes.

    python -m train.pretrain --config=configs/quickstart.py --workdir=runs/quick

Text that is not prepared yet is prepared first, into WORKDIR/store. The same
--workdir resumes where it stopped; --config may then be left out. SIGTERM and
Ctrl-C save and exit with 75: start again to go on.
"""

from etils import epath

from configs import door
from data import pipeline, prepare
from data import tokenizer as tokenizers
from models import families, sampling
from sharding import mesh
from train.core import (
  checkpointing,
  conflicts,
  guard,
  loop,
  optim,
  run,
  schedule,
  setup,
  track,
)
from train.evaluators import suite
from train.objectives import choice

SECTIONS = {
  "model": families.FAMILIES,
  "tokenizer": tokenizers.Config,
  "data": prepare.Config,
  "batch": pipeline.Config,
  "objective": choice.CONFIGS,
  "optim": optim.CONFIGS,
  "schedule": schedule.CONFIGS,
  "mesh": mesh.Config,
  "train": loop.Config,
  "guard": guard.Config,
  "checkpoint": checkpointing.Config,
  "log": track.Config,
  "eval": suite.Config,
  "generate": sampling.Config,
}


def main(config: door.Config, workdir: epath.Path) -> int:
  """Prepares, builds, resumes or begins, trains; returns the exit code."""
  conflicts.check(config)  # before any work
  with run.opened(workdir) as session:
    with session.ledger.spend("prepare"):
      s = setup.begin(config, workdir)
    edges = s.store.tokenizer.word_edges
    objective = choice.make(config.objective, s.model, edges)
    return run.train(session, config, s, objective, SECTIONS)


if __name__ == "__main__":
  door.run(main, SECTIONS)
