"""Kills a run every so many steps: how much of its time still counts?

    python -m benchmarks.faults.storm --n 4

A run of some minutes is killed (-9) again and again, each time some 30 steps
after the last, and started anew as a process of its own: interpreter, imports,
restoring and reading back the compiled step are all paid. The ideal is the same
run without a kill.

The last line is JSON: kills, goodput and ideal (shares of wall time in steps
that count), ratio of the wall times, of_ideal (goodput / ideal; aim 0.90),
lost_steps, identical (the same bits at the end).
"""

import json
import os
import random
import subprocess
import sys
import time

from etils import epath

from benchmarks.faults import dose, runs
from configs import door
from train.core import goodput

EVERY = 30  # steps between two kills
# Steps of some seconds on two cores: what is slow about a restart is so too.
SIZE = {
  "model": {"d_model": 192, "n_layers": 6, "d_head": 48, "d_ff": 512,
            "max_length": 256},
  "batch": {"size": 64, "length": 256},
  "objective": {"chunk_tokens": 1024},
}  # fmt: skip


def page(folder: epath.Path, n_steps: int, size: dict) -> door.Config:
  """The run: saves every second step, tells of every one."""
  return runs.page(
    folder,
    **size,
    train={"steps": n_steps, "log_every_steps": 1},
    checkpoint={"every_steps": 2},
  )


def live(settings: epath.Path, workdir: epath.Path) -> subprocess.Popen:
  """Starts a life, with a compile cache beside its workdir."""
  cache = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
  }
  return subprocess.Popen(
    [sys.executable, "-m", "train.pretrain"]
    + [f"--config={settings}", f"--workdir={workdir}"],
    env=os.environ | cache,
    stdout=subprocess.DEVNULL,
  )


def storm(
  n_kills: int, folder: epath.Path, size: dict = SIZE
) -> dict[str, float]:
  """Runs without and with kills; returns the figures."""
  config = page(folder, (n_kills + 1) * EVERY, size)
  settings = folder / "config.json"
  settings.write_text(json.dumps(config.to_dict()))
  calm, stormy, first = folder / "calm", folder / "stormy", folder / "first"
  # The cache and the store are there before either begins.
  once = page(folder, 4, size).to_dict()
  (folder / "once.json").write_text(json.dumps(once))
  assert live(folder / "once.json", first).wait() == 0
  assert live(settings, calm).wait() == 0
  rng = random.Random(0)
  for i in range(n_kills):
    at = (i + 1) * EVERY + rng.randrange(-EVERY // 6, EVERY // 6 + 1)
    process = live(settings, stormy)
    while process.poll() is None and _made(stormy) < at:
      time.sleep(0.02)
    process.kill()
    process.wait()
  assert live(settings, stormy).wait() == 0
  lives = goodput.lives(stormy)
  accounts = [goodput.account(goodput.lives(w)) for w in (calm, stormy)]
  shares = [a["step"] / sum(a.values()) for a in accounts]
  walls = [sum(a.values()) for a in accounts]
  pairs = zip(lives, lives[1:], strict=False)
  return {
    "kills": len(lives) - 1,
    "ideal": round(shares[0], 4),
    "goodput": round(shares[1], 4),
    "of_ideal": round(shares[1] / shares[0], 4),
    "ratio": round(walls[0] / walls[1], 4),
    "lost_steps": sum(a["to_step"] - b["from_step"] for a, b in pairs),
    "step_seconds": round(accounts[0]["step"] / config.train.steps, 3),
    "identical": runs.digest(calm) == runs.digest(stormy),
  }


def _made(workdir: epath.Path) -> int:
  """The last step that the run has told of."""
  lives = goodput.lives(workdir)
  return lives[-1]["to_step"] if lives else 0


if __name__ == "__main__":
  dose.run(
    storm, n=4, is_kept=lambda f: f["identical"] and f["of_ideal"] >= 0.9
  )
