"""Slices that add up their gradients once a step, not once a micro-batch.

What joins slices is 14 to 29 times slower than what is within them, by
sharding/topology.py. So each works through all its micro-batches alone, and
then they meet, in fp32.
"""

from typing import Any

from jax import numpy as jnp

from models import families
from sharding.rules import Layout
from train.core.diloco import AXIS


def axis(
  layout: Layout,
  n_micro: int,
  model: families.Config,
  objective: Any,
  adapter: Any = None,
) -> str | None:
  """`AXIS`, where what a batch gives is the sum of what its slices give.

  It is not where something is of all rows of a micro-batch: what is drawn for
  them (dropout, noise, hidden words), and the means in the losses of routers.
  There they meet once a micro-batch, as with one: the numbers are those of any
  mesh. So they do where that carries no more: two gradients in bf16 are as many
  bytes as their sum in fp32, which has to wait for both.

  Args:
    layout: of the step.
    n_micro: parts of a batch.
    model: what is trained.
    objective: its config.
    adapter: that of what is trained beside it; None: nothing.
  """
  is_of_all = (
    hasattr(model, "experts")
    or objective.draws
    or any(getattr(x, "dropout", 0) for x in (model, adapter))
  )
  is_less = n_micro * jnp.dtype(model.dtype).itemsize > 4
  is_alone = layout.mesh.shape[AXIS] == 1
  return None if is_alone or is_of_all or not is_less else AXIS
