"""X8: memory of a conversion: no more than 1.3 of a file of weights.

A Llama of 260 MB in files of 60 MB goes in and out, in a process of its own.
What glibc's malloc keeps of memory that was given back does not count: from
128 kB on it gives it back.
"""

import json
import subprocess
import sys

import pytest

_PROGRAM = """
import json, sys
import jax, numpy as np
from etils import epath
from convert import catalogue, hf, shards, tensors
from models import llama

def memory(what):
  with open("/proc/self/status") as status:
    line = next(line for line in status if line.startswith(what))
  return int(line.split()[1]) / 1024

def peak(work):
  with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
  before = memory("VmRSS")
  work()
  return memory("VmHWM") - before

def config(d_model, d_ff):
  return llama.Config(
    vocab_size=8192, d_model=d_model, n_layers=8, n_heads=8, n_kv_heads=8,
    d_head=d_model // 8, d_ff=d_ff,
  )

def make(folder, config):
  folder.mkdir()
  pieces = tensors.pieces(config, catalogue.in_files(config))
  shapes = {p.theirs: jax.ShapeDtypeStruct(p.shape, "float32") for p in pieces}
  rng = np.random.default_rng(0)
  draw = lambda name: rng.random(shapes[name].shape, np.float32)
  shards.write(folder, shapes, 60 * 2**20, draw)
  settings = catalogue.of(config).theirs(config)
  (folder / "config.json").write_text(json.dumps(settings))
  return sum(x.size * 4 for x in shapes.values()) / 2**20

root = epath.Path(sys.argv[1])
make(root / "a", config(64, 64))
hf.take(root / "a", root / "b")  # what is loaded once does not count
hf.give(root / "b", root / "c")
size = make(root / "theirs", config(512, 4096))
files = [f.stat().length / 2**20 for f in (root / "theirs").glob("*.safetensors")]
into = peak(lambda: hf.take(root / "theirs", root / "ours"))
out = peak(lambda: hf.give(root / "ours", root / "back", max_bytes=60 * 2**20))
print(json.dumps({"size": size, "shard": max(files), "in": into, "out": out}))
"""


@pytest.mark.slow
def test_a_conversion_takes_little_memory(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM, str(tmp_path)],
    env={"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "131072"},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  print(found)
  assert found["size"] > 4 * found["shard"]
  assert found["in"] <= 1.3 * found["shard"], found
  assert found["out"] <= 1.3 * found["shard"], found
