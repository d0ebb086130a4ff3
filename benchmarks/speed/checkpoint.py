"""What saving costs a run: seconds it stops for, steps while it writes, restoring.

    python -m benchmarks.speed.checkpoint

The step of the quickstart page's model (8 rows, AdamW) runs on; now and then its
state is saved, and steps go on until the save is sealed. A CPU writes, digests and
computes with the same cores, which an accelerator does not: the ratio of step
times is an upper bound. The last line is JSON.
"""

import json
import statistics
import tempfile
import time

import jax
import numpy as np
from etils import epath

from configs import door
from data.batch import Batch
from models import families, manifest
from sharding import mesh, rules
from train import pretrain
from train.core import checkpointing, loop, optim, schedule, state, step
from train.objectives import lm

SAVES = 7
STEPS = 12  # between two saves
SHAPE = (8, 256)


def main() -> None:
  """Measures, prints."""
  page = door.read("configs/quickstart.py")
  config = door.build(page, pretrain.SECTIONS)
  layout = rules.make(mesh.make(config.mesh), config.mesh.rules)
  factor = schedule.make(config.schedule, config.train.steps)
  optimizer = optim.make(config.optim, factor, families.axes(config.model))
  now = state.init(config.model, optimizer, layout, seed=0)
  ids = np.ones(SHAPE, np.int32)
  batch = jax.device_put(
    Batch(ids, ids, ids.astype(np.float32), ids, ids), layout.batch
  )
  update, _ = loop.compile_step(
    step.make(lm.make(config.objective, config.model), optimizer),
    now,
    batch,
    layout,
  )
  n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(now))
  progress = checkpointing.Progress({"made_from": {}}, {})
  alone, beside, stopped, written = [], [], [], []

  def advance() -> float:
    nonlocal now
    started = time.perf_counter()
    now, *_ = jax.block_until_ready(update(now, batch))
    return time.perf_counter() - started

  with tempfile.TemporaryDirectory() as folder:
    workdir = epath.Path(folder)

    def opened() -> checkpointing.Checkpoints:
      return checkpointing.Checkpoints(
        workdir, checkpointing.Config(), {}, lambda path: None
      )

    with opened() as checkpoints:
      for _ in range(SAVES):
        alone += [advance() for _ in range(STEPS)][1:]
        path = workdir / "checkpoints" / str(int(now.step)) / manifest.NAME
        started = time.perf_counter()
        checkpoints.save(now, progress, {})
        stopped.append(time.perf_counter() - started)
        while not path.exists():
          beside.append(advance())
        written.append(time.perf_counter() - started)
        checkpoints.finish()
    wanted = state.abstract(config.model, optimizer, layout)
    with opened() as checkpoints:
      started = time.perf_counter()
      jax.block_until_ready(checkpoints.restore(wanted, print))
      restored = time.perf_counter() - started
  median = {
    name: statistics.median(seconds)
    for name, seconds in {
      "step": alone, "step_beside": beside, "stopped": stopped,
      "written": written,
    }.items()
  }  # fmt: skip
  result = {
    "name": "checkpoint",
    "state_mb": round(n_bytes / 1e6, 1),
    **{f"{name}_seconds": round(s, 3) for name, s in median.items()},
    "ratio_of_steps": round(median["step_beside"] / median["step"], 2),
    "share_stopped": round(median["stopped"] / median["written"], 3),
    "restore_seconds": round(restored, 3),
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
