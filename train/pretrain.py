"""Trains a language model from scratch, from text to a checkpoint that writes.

    python -m train.pretrain --config=configs/quickstart.py --workdir=runs/quick

Text that is not prepared yet is prepared first, into WORKDIR/store. The same
--workdir resumes where it stopped; --config may then be left out.
"""

import jax
from etils import epath

from configs import door
from data import pipeline, prepare
from data import tokenizer as tokenizers
from models import families, flops, sampling
from sharding import mesh, report
from train.core import (
  checkpointing,
  hardware,
  loop,
  optim,
  precision,
  schedule,
  setup,
  state,
  step,
  track,
)
from train.evaluators import suite
from train.objectives import lm

SECTIONS = {
  "model": families.FAMILIES,
  "tokenizer": tokenizers.Config,
  "data": prepare.Config,
  "batch": pipeline.Config,
  "objective": lm.Config,
  "optim": optim.CONFIGS,
  "schedule": schedule.CONFIGS,
  "mesh": mesh.Config,
  "train": loop.Config,
  "checkpoint": checkpointing.Config,
  "eval": suite.Config,
  "generate": sampling.Config,
}


def main(config: door.Config, workdir: epath.Path) -> None:
  """Prepares, builds, resumes or begins, trains."""
  factor = schedule.make(config.schedule, config.train.steps)
  s = setup.begin(config, workdir, config.train.n_micro)
  say = track.terminal().say
  settings = setup.settle(config, workdir, SECTIONS, say)

  # What is trained, and how.
  axes = families.axes(s.model)
  optimizer = optim.make(config.optim, factor, axes)
  if s.model.dtype == "float16":
    optimizer = precision.wrap(optimizer, precision.Config())
  shapes = families.abstract(s.model)
  update = step.make(
    lm.make(config.objective, s.model),
    optimizer,
    n_micro=config.train.n_micro,
    seed=config.train.seed,
    grad_shardings=s.layout.shardings(axes, shapes, "grads"),
  )
  batches = pipeline.train_batches(
    config.batch, s.store.train, config.data.weights, s.rows, config.train.seed
  )

  # From the newest checkpoint, or from the start; compiled once, then run.
  places = state.abstract(s.model, optimizer, s.layout)
  tokenizer = s.store.tokenizer
  with checkpointing.Checkpoints(
    workdir, config.checkpoint, settings, tokenizer.save
  ) as checkpoints:
    found = checkpoints.restore(places, say)
    if found:
      first, progress = found
      batches.restore(progress.data)
    else:
      first = state.init(
        s.model, optimizer, s.layout, config.train.seed, config.optim.mup_width
      )
    report.check(first, jax.tree.map(lambda x: x.sharding, places))
    if jax.process_index() == 0:
      (workdir / "sharding.txt").write_text(report.table(first) + "\n")
    compiled, seconds = loop.compile_step(
      update, first, s.abstract_batch, s.layout
    )
    say(f"{s}; compiled in {seconds:.1f} s")
    with (
      pipeline.Prefetch(batches, config.batch.n_ahead) as stream,
      track.open_tracker(workdir, int(first.step)) as tracker,
    ):
      loop.run(
        config.train,
        compiled,
        first,
        stream,
        put=s.put,
        meter=loop.Meter(
          tokens_per_step=config.batch.size * config.batch.length,
          flops_per_token=flops.train_per_token(s.model, config.batch.length),
          peak_flops=hardware.peak_flops(s.model.dtype),
          lr=lambda i: float(factor(i)) * getattr(config.optim, "lr", 1.0),
        ),
        tracker=tracker,
        checkpoints=checkpoints,
        evaluators=suite.make(
          config.eval.during, config.eval, config.generate, s, tracker
        ),
        loop_state=progress.loop if found else None,
      )


if __name__ == "__main__":
  door.run(main, SECTIONS)
