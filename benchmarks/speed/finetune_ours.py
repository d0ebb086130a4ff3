"""Our side of finetune_cpu: the step of train.lora or of train.finetune.

    python -m benchmarks.speed.finetune_ours lora

trains an adapter (`lora`) or the whole model (`full`), whenever a line comes in.
"""

import dataclasses
import sys
from typing import Any

import jax

from benchmarks.speed import beside_torch, turns
from models import adapters, families, llama
from sharding import mesh, rules
from train.core import loop, optim, parts, schedule, state, step
from train.objectives import lm

MODEL = dataclasses.replace(
  llama.PRESETS["smollm2_135m"],
  n_layers=6,
  max_length=turns.LENGTH,
  dtype="float32",
)
ADAPTER = adapters.Lora(
  paths=("*/attention/[qkvo]", "*/mlp/*"), rank=turns.RANK, alpha=16.0
)
OPTIM = optim.AdamW(lr=turns.LR, b2=0.999, weight_decay=0.0, clip=turns.CLIP)


def weights() -> Any:
  """What both begin from."""
  init = jax.jit(families.init, static_argnums=0)
  return init(MODEL, jax.random.key(0))


def main(kind: str) -> None:
  """Trains when asked."""
  layout = rules.make(mesh.make(mesh.Config()), "dp")
  if kind == "lora":
    split = parts.adapted(MODEL, adapters.Base(path="-"), ADAPTER)
  else:
    split = parts.of(MODEL)
  factor = schedule.make(schedule.Constant(), 1)
  optimizer = optim.make(OPTIM, factor, split.axes, split.speeds)
  places = state.shardings(split, optimizer, layout)
  begin = jax.jit(
    split.split, out_shardings=(places.params, places.frozen), donate_argnums=0
  )
  begun = begin(weights(), jax.random.key(0))
  now = state.begin(split, optimizer, layout, *begun)
  text = beside_torch.text(MODEL.vocab_size, turns.ROWS, turns.LENGTH)
  batch = jax.device_put(text, layout.batch)
  update, _ = loop.compile_step(
    step.make(
      lm.make(lm.Config(), MODEL), optimizer, axes=split.axes, join=split.join
    ),
    now,
    batch,
    layout,
  )

  def train() -> float:
    nonlocal now
    now, metrics, _ = jax.block_until_ready(update(now, batch))
    return loop.divide([metrics])["loss"]

  turns.work(train)


if __name__ == "__main__":
  main(*sys.argv[1:])
