"""Memory of saving and restoring, in processes of their own (C8).

A state of 300 MB, parameters and two moments, with leaves of 1 to 40 MB. On a
CPU the devices' memory is the host's: it all counts. What glibc's malloc keeps
of memory that was given back does not: from 128 kB on it gives it back as well.
"""

import json
import subprocess
import sys

import pytest

_COMMON = """
import gc, json, sys
import jax
from jax import numpy as jnp
from etils import epath
from train.core import checkpointing, guard
from train.core.state import TrainState

SIZES = [40] + [10] * 5 + [1] * 10  # MB

def make(seed):
  def tree(key):
    keys = jax.random.split(key, len(SIZES))
    return {
      f"w{i}": jax.random.normal(k, (size, 512, 512))
      for i, (size, k) in enumerate(zip(SIZES, keys))
    }
  params, mu, nu = map(tree, jax.random.split(jax.random.key(seed), 3))
  history = jax.tree.map(lambda x: x + 0, guard.start())
  return TrainState(jnp.int32(0), params, {"mu": mu, "nu": nu}, history)

def memory(what):
  with open("/proc/self/status") as status:
    line = next(line for line in status if line.startswith(what))
  return int(line.split()[1]) / 1024

def forget_peak():
  with open("/proc/self/clear_refs", "w") as file:
    file.write("5")

def opened():
  copy = lambda path: (path / "tokenizer.bytes").write_text("ids")
  config = checkpointing.Config(keep_last=2)
  return checkpointing.Checkpoints(epath.Path(sys.argv[1]), config, {}, copy)

N_MB = 3 * sum(SIZES)
"""
_SAVE = """
PROGRESS = checkpointing.Progress({"0": [1]}, {})
update = jax.jit(
  lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s),
  donate_argnums=0,
)
state = jax.block_until_ready(update(make(0)))
gc.collect()
before = memory("VmRSS") - N_MB
peaks, after = [], []
with opened() as checkpoints:
  for _ in range(int(sys.argv[2])):
    forget_peak()
    checkpoints.save(state, PROGRESS, {})
    state = jax.block_until_ready(update(state))  # while it is written
    checkpoints.finish()
    peaks.append((memory("VmHWM") - before) / N_MB)
    after.append((memory("VmRSS") - before) / N_MB)
print(json.dumps({"peaks": peaks, "after": after}))
"""
_RESTORE = """
place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
wanted = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
  jax.eval_shape(lambda: make(0)),
)
with opened() as checkpoints:
  jnp.zeros(()).block_until_ready()
  before = memory("VmRSS")
  forget_peak()
  state, _ = jax.block_until_ready(checkpoints.restore(wanted, lambda _: None))
  print(json.dumps({"peak": (memory("VmHWM") - before) / N_MB}))
"""


def _run(program: str, *arguments) -> dict:
  done = subprocess.run(
    [sys.executable, "-c", _COMMON + program, *map(str, arguments)],
    env={"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "131072"},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_save_takes_twice_the_state_a_restore_1_3_times(tmp_path):
  """The state as it was saved, that of the step meanwhile, and a tenth."""
  saved = _run(_SAVE, tmp_path, 2)
  assert max(saved["peaks"]) <= 2.2
  assert max(saved["after"]) <= 1.1
  assert _run(_RESTORE, tmp_path)["peak"] <= 1.3


@pytest.mark.slow
def test_fifty_saves_keep_nothing(tmp_path):
  """Behind the 50th, no more stays in memory than behind the 10th.

  A hundredth of the state kept by each save would be 0.4 of it; what pages
  malloc happens to hold is up to 0.03 where other programs run.
  """
  after = _run(_SAVE, tmp_path, 50)["after"]
  assert after[49] - after[9] <= 0.1
