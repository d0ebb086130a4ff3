"""Goes on training a checkpoint: on conversations, instructions, labels, text.

A model of two texts learns to write the one about the other:
data.chat.apart=True, with the formats pairs, instruction and completion.

    python -m train.finetune --config=configs/finetune_functions.py \\
      --workdir=runs/finetuned

Model and tokenizer are the base's; `base.trained` names the paths that are
trained, "*" for any characters, and the others keep their bits. Records that
are not prepared yet are prepared first, into WORKDIR/store. The same --workdir
resumes where it stopped. Text to be kept in mind is a source of its own, with
its share in `data.weights`.
"""

from etils import epath

from configs import door
from data import pipeline
from models import base
from train import pretrain
from train.core import conflicts, parts, run, setup
from train.objectives import choice

SECTIONS = {"base": parts.Config, **pretrain.SECTIONS}


def main(config: door.Config, workdir: epath.Path) -> int:
  """Prepares, reads the base or resumes, trains; returns the exit code."""
  conflicts.check(config)  # before any work
  with run.opened(workdir) as session:
    with session.ledger.spend("prepare"):
      s = setup.begin(config, workdir)
    path = epath.Path(config.base.path)
    if path.exists():  # a run that goes on needs it no more
      setup.check_tokenizer(path, s.store)
    n_cut, n = pipeline.n_cut(s.store.train, config.batch)
    if n:
      longest = f"batch.length={config.batch.length}"
      if n_read := config.batch.source_length:
        longest += f" or batch.source_length={n_read}"
      session.say(
        f"{n:,} examples, {n_cut} of which are longer than {longest} and lose "
        "their ends"
      )
    edges = s.store.tokenizer.word_edges
    objective = choice.make(config.objective, s.model, edges)
    return run.train(session, config, s, objective, SECTIONS)


if __name__ == "__main__":
  door.run(main, SECTIONS, fill=base.fill)
