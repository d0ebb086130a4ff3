"""Seconds to compile a training step at 4, 16 and 64 layers.

    python -m benchmarks.speed.compile

The step is the loop's own: a Llama with all layers rematerialized, AdamW,
clipping. The scan compiles one layer, so the time should not grow with their
number. Depths take turns, so that they share the machine's moods; the least
time of each counts. The last line is JSON.
"""

import dataclasses
import json

import jax
from jax import numpy as jnp

from data.batch import Batch
from models import families, llama
from sharding import mesh, rules
from train.core import loop, optim, schedule, state, step
from train.objectives import lm

DEPTHS = (4, 16, 64)
TURNS = 5
SHAPE = (8, 256)


def compile_seconds(n_layers: int) -> float:
  """Seconds to trace and compile the step, from an empty cache."""
  config = dataclasses.replace(
    llama.PRESETS["15m"], n_layers=n_layers, remat="full"
  )
  layout = rules.make(mesh.make(mesh.Config()), "fsdp_tensor")
  factor = schedule.make(schedule.WSD(warmup_steps=10), 1000)
  optimizer = optim.make(optim.AdamW(lr=1e-3), factor, families.axes(config))
  ids = jax.ShapeDtypeStruct(SHAPE, jnp.int32, sharding=layout.batch)
  weights = jax.ShapeDtypeStruct(SHAPE, jnp.float32, sharding=layout.batch)
  batch = Batch(ids, ids, weights, ids, ids)
  update = step.make(lm.make(lm.Config(), config), optimizer)
  shapes = state.abstract(config, optimizer, layout)

  jax.clear_caches()
  _, seconds = loop.compile_step(update, shapes, batch, layout)
  return seconds


def main() -> None:
  """Measures the depths in turns."""
  turns = {depth: [] for depth in DEPTHS}
  for _ in range(TURNS):
    for depth in DEPTHS:
      turns[depth].append(compile_seconds(depth))
  least = {depth: min(seconds) for depth, seconds in turns.items()}
  for depth, seconds in least.items():
    print(f"{depth:3} layers: {seconds:6.2f} s")
  result = {
    "name": "compile",
    **{f"seconds_{depth}": round(s, 2) for depth, s in least.items()},
    "ratio_64_to_4": round(least[64] / least[4], 3),
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
