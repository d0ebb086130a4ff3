"""Trains an adapter beside a frozen base, which it names by its digest.

    python -m train.lora --config=configs/lora.py --workdir=runs/lora

The page gives `base.path`, a checkpoint or a run; its model and its tokenizer
come from there. `adapter` says what is trained: LoRA and its kin, or IA3; and
`base.weights` in which form the base is held: nf4 is QLoRA. What is saved is the
adapter alone. It is a checkpoint like any other: train.evaluate and
serve.generate read it together with its base, `python -m convert.merge` makes
one of the two. The same --workdir resumes where it stopped.
"""

from etils import epath

from configs import door
from models import adapters, base
from train import pretrain
from train.core import conflicts, run, setup
from train.objectives import choice

SECTIONS = {
  "base": adapters.Base,
  "adapter": adapters.CONFIGS,
  **pretrain.SECTIONS,
}


def main(config: door.Config, workdir: epath.Path) -> int:
  """Prepares, reads the base, resumes or begins, trains; the exit code."""
  conflicts.check(config)  # before any work
  with run.opened(workdir) as session:
    with session.ledger.spend("prepare"):
      s = setup.begin(config, workdir)
    edges = s.store.tokenizer.word_edges
    objective = choice.make(config.objective, s.model, edges)
    return run.train(session, config, s, objective, SECTIONS)


if __name__ == "__main__":
  door.run(main, SECTIONS, fill=base.fill)
