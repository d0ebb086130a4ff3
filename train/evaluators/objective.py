"""What is minimised, on held-out text: for what has no likelihood of a text."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from data.batch import Batch
from models import families
from sharding.rules import Layout
from train.core import staged, step

NAMES = ("loss", "accuracy")  # of what may be measured; numbers have no hits


def make(
  objective: step.Objective,
  model: families.Config,
  batches: Callable[[], Iterable[Batch]],
  layout: Layout,
) -> Callable[[Any, int], Mapping[str, float]]:
  """Builds the evaluator.

  Args:
    objective: what is minimised, which draws the same without a key.
    model: the architecture.
    batches: starts the held-out text anew, global batches on the devices.
    layout: where parameters and batches live.
  """
  objective = staged.make(objective, model, layout)

  @jax.jit
  def sums(params, batch):
    _, _, metrics = objective(params, batch, None)
    return {name: metrics[name] for name in NAMES if name in metrics}

  def evaluate(params: Any, at_step: int) -> dict[str, float]:
    del at_step
    total: dict[str, list[float]] = {"loss": [0.0, 0.0]}
    with layout.use():
      for batch in batches():
        for name, pair in sums(params, batch).items():
          total[name] = [
            a + float(b)
            for a, b in zip(total.get(name, [0.0, 0.0]), pair, strict=True)
          ]
    if not total["loss"][1]:
      raise ValueError(
        "nothing of the held-out split is asked for: raise "
        "data.heldout_fraction or name more documents."
      )
    return {f"heldout_{name}": a / b for name, (a, b) in total.items()}

  return evaluate
