"""Real training runs, as processes of their own that can be hurt.

    life = runs.start(runs.page(folder), workdir)
    life.kill()
    code = runs.start(runs.page(folder), workdir).wait()
    same = runs.digest(workdir) == expected

A run is `train.pretrain` on a few generated files, with its door, its exit
codes, its threads and its checkpoints. What is saved is the start: a fork
server has imported everything, and what was compiled once is read back.
"""

import dataclasses
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import jax
from etils import epath

from configs import door
from models import arrays, checkpoint, manifest
from train import pretrain

_CACHE = os.path.join(tempfile.gettempdir(), f"faults-compiled-{os.getuid()}")
_SERVER = multiprocessing.get_context("forkserver")
# Importing tensorboardX imports torch, where that is installed: 1.3 s a life.
_SERVER.set_forkserver_preload([__name__, "tensorboardX"])


@dataclasses.dataclass
class Life:
  """One process of a run, from its start to its end."""

  process: BaseProcess
  log: epath.Path  # what it prints

  def signal(self, number: int) -> None:
    """Sends a signal; to one that has ended: none."""
    if self.process.is_alive():
      os.kill(self.process.pid, number)

  def kill(self) -> None:
    """Ends it as a loss of power would, and waits until it is gone."""
    self.signal(signal.SIGKILL)
    self.process.join()

  def wait(self, timeout_seconds: float = 300) -> int:
    """Its exit code; -N where signal N ended it.

    Raises:
      TimeoutError: it has not ended in time, and is killed now.
    """
    self.process.join(timeout_seconds)
    if self.process.exitcode is None:
      self.kill()
      raise TimeoutError(f"no end in {timeout_seconds} s:\n{self.said}")
    return self.process.exitcode

  def wait_for(self, is_there: Callable[[], bool]) -> bool:
    """Waits until something is so; False where the run ended before."""
    while self.process.is_alive():
      if is_there():
        return True
      time.sleep(0.002)
    return is_there()

  @property
  def said(self) -> str:
    """What it has printed so far."""
    return self.log.read_text() if self.log.exists() else ""


def start(
  config: door.Config,
  workdir: epath.Path,
  *,
  n_devices: int = 1,
  fault: Callable[[], Any] | None = None,
) -> Life:
  """Starts a life of a run; the same workdir goes on where the last one ended.

  Args:
    config: as `page` builds it.
    workdir: of the run; a log beside it takes what is printed.
    n_devices: virtual devices.
    fault: a function of some module, called in the new process before the run:
      it may put what fails in the place of what works.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  log = workdir.parent / f"{workdir.name}.{time.time_ns()}.log"
  process = _SERVER.Process(
    target=_live, args=(config, str(workdir), str(log), n_devices, fault)
  )
  process.start()
  return Life(process, log)


def _live(
  config: door.Config,
  workdir: str,
  log: str,
  n_devices: int,
  fault: Callable[[], Any] | None,
) -> None:
  out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
  os.dup2(out, 1)
  os.dup2(out, 2)
  os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={n_devices}"
  )
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_compilation_cache_dir", _CACHE)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
  with door.plain_mistakes():
    if fault:
      fault()
    sys.exit(pretrain.main(config, epath.Path(workdir)) or 0)


def log_compiles() -> None:
  """Given as a fault: every compilation is a line of the log."""
  jax.config.update("jax_log_compiles", True)


def page(folder: epath.Path, **changes: dict[str, Any]) -> door.Config:
  """The config of a tiny run on generated text, which `folder` keeps.

  Args:
    folder: several runs may share it; the text is prepared once.
    changes: section -> what to change in it.
  """
  if not (folder / "text").exists():
    _write_text(folder / "text")
  settings = {
    "model": {
      "name": "llama", "vocab_size": 264, "d_model": 32, "n_layers": 2,
      "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "d_ff": 64,
      "max_length": 64, "dtype": "float32",
    },
    "tokenizer": {"kind": "bytes", "vocab_size": 259},
    "data": {
      "sources": (f"{folder}/text/*.txt",),
      "path": f"{folder}/store",
      "heldout_fraction": 0.2,
    },
    "batch": {"size": 8, "length": 32},
    "objective": {"chunk_tokens": 16},
    "optim": {"name": "adamw", "lr": 1e-2},
    "schedule": {"name": "cosine", "warmup_steps": 2},
    "mesh": {"data": -1},
    "train": {"steps": 40, "log_every_steps": 5},
    "checkpoint": {"every_steps": 2},
    "eval": {"during": (), "final": ("perplexity",)},
    "generate": {"max_tokens": 8},
  }  # fmt: skip
  for section, values in changes.items():
    settings[section] = {**settings[section], **values}
  return door.build(settings, pretrain.SECTIONS)


def _write_text(folder: epath.Path) -> None:
  rng = random.Random(0)
  words = "the a red green cat dog sees hears likes one two three".split()
  folder.mkdir(parents=True)
  for i in range(60):
    text = " ".join(rng.choice(words) for _ in range(rng.randint(20, 90)))
    (folder / f"{i:02}.txt").write_text(text + "\n")


def digest(path: epath.Path) -> str:
  """SHA-256 of all arrays of a checkpoint, or of the newest one of a run.

  Raises:
    ValueError: it does not verify.
  """
  path = checkpoint.find(path)
  if problem := manifest.verify(path):
    raise ValueError(f"{path} is damaged: {problem}.")
  found = hashlib.sha256()
  for part in ("params", "state"):
    for name, leaf in arrays.read(path / part):
      found.update(f"{part}/{name} {leaf.dtype} {leaf.shape}\n".encode())
      found.update(leaf.tobytes())
  return found.hexdigest()
