"""A step of finetuning on a CPU, against peft and transformers: LoRA, and all.

    python -m benchmarks.speed.finetune_cpu

SmolLM2-135M with 6 of its 30 layers, random weights, fp32, batch 4 x 256; LoRA
of rank 8 on every matrix. Each of the four is a process of its own, with a
thread for each core that this one may use (`taskset -c 0` leaves one; on a busy
machine the seconds of the processor are those to compare then). They train in
turns, on the same tokens from the same weights, and the first losses must
agree. Memory is the most that a process had, with what it imports and compiles.
The base of QLoRA is counted whole, its tables in fp32 with the rest that is not
in blocks, also for Llama 3 8B. The last line is JSON. Needs the extra `parity`.
"""

import json
import os
import statistics
import tempfile

import jax
import numpy as np
import torch
import transformers

from benchmarks.parity import hf
from benchmarks.speed import finetune_ours, turns
from convert import tensors
from models import adapters, families, flops, llama
from train.core import parts

ROUNDS = 5
TOLERANCE = 1e-3  # of the first losses, before weights differ
OURS, THEIRS = (
  "benchmarks.speed.finetune_ours",
  "benchmarks.speed.finetune_peft",
)
QUANTIZED = ("smollm2_135m", "llama3_8b")


def save(folder: str) -> None:
  """Writes the model for transformers."""
  config = finetune_ours.MODEL
  params = finetune_ours.weights()
  model = transformers.AutoModelForCausalLM.from_config(hf.their_config(config))
  found = tensors.to_theirs(config, params)
  model.load_state_dict(
    {name: torch.tensor(x) for name, x in found.items()}, strict=False
  )
  model.float().save_pretrained(folder)


def held_bytes(model: llama.Config, **form) -> int:
  """Bytes of a frozen base in a form."""
  base = adapters.Base(path="-", **form)
  axes = families.axes(model)
  held = jax.eval_shape(
    lambda params: adapters.hold(base, axes, params), families.abstract(model)
  )
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held))


def quantized(name: str) -> dict[str, float]:
  """What NF4 makes of the base of a preset, in GB and as a share of bf16."""
  model = llama.PRESETS[name]
  plain = held_bytes(model, weights="bfloat16")
  found = {"bf16_gb": round(plain / 1e9, 3)}
  for title, double in (("nf4", False), ("nf4_double", True)):
    share = held_bytes(model, weights="nf4", double=double) / plain
    found[f"{title}_share"] = round(share, 3)
  return found


def trainable() -> float:
  """The share of the parameters that LoRA trains."""
  model = finetune_ours.MODEL
  split = parts.adapted(model, adapters.Base(path="-"), finetune_ours.ADAPTER)
  n = sum(x.size for x in jax.tree.leaves(split.shapes))
  return n / flops.n_params(model)


def measure(folder: str) -> dict[str, dict[str, float]]:
  """Median tokens per second and peak GB of all, in turns."""
  workers = {
    (kind, name): turns.Worker(module, *arguments, kind)
    for kind in ("lora", "full")
    for name, module, arguments in (
      ("ours", OURS, ()),
      ("peft", THEIRS, (folder,)),
    )
  }
  first = {key: worker.turn() for key, worker in workers.items()}  # compiles
  found = {key: [] for key in workers}
  for _ in range(ROUNDS):
    for key, worker in workers.items():
      found[key].append(worker.turn())
  for worker in workers.values():
    worker.end()
  result = {}
  for kind in ("lora", "full"):
    losses = [first[kind, name]["losses"][0] for name in ("ours", "peft")]
    np.testing.assert_allclose(*losses, rtol=0, atol=TOLERANCE, err_msg=kind)
    own = {}
    for name in ("ours", "peft"):
      for clock in ("seconds", "cpu_seconds"):
        seconds = [s for turn in found[kind, name] for s in turn[clock]]
        rate = turns.ROWS * turns.LENGTH / statistics.median(seconds)
        own[f"{name}_tokens_per_{clock[:-1]}"] = round(rate)
      peak = found[kind, name][-1]["peak_bytes"]
      own[f"{name}_peak_gb"] = round(peak / 1e9, 2)
    for title in ("tokens_per_second", "tokens_per_cpu_second", "peak_gb"):
      ratio = own[f"ours_{title}"] / own[f"peft_{title}"]
      own[f"{title}_ratio"] = round(ratio, 3)
    own["loss_difference"] = round(abs(losses[0] - losses[1]), 6)
    result[kind] = own
  return result


def main() -> None:
  """Measures, with the load of the machine at the start."""
  load, n_threads = os.getloadavg()[0], len(os.sched_getaffinity(0))
  result = {
    "name": "finetune_cpu",
    "load": round(load, 2),
    "threads": n_threads,
  }
  with tempfile.TemporaryDirectory() as folder:
    save(folder)
    for kind, found in measure(folder).items():
      print(kind, "  ".join(f"{name} {value}" for name, value in found.items()))
      result[kind] = found
  result["trainable_share"] = round(trainable(), 4)
  result["qlora"] = {name: quantized(name) for name in QUANTIZED}
  print(json.dumps(result))


if __name__ == "__main__":
  main()
