"""Held-out likelihood: per token, and in bits per byte of the original text.

Bits per byte compare models of any tokenizer, and models with compressors.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from data.batch import Batch
from models import families
from sharding.rules import Layout
from train.core import staged
from train.objectives import lm


def make(
  model: families.Config,
  batches: Callable[[], Iterable[Batch]],
  token_bytes: np.ndarray,
  layout: Layout,
) -> Callable[[Any, int], Mapping[str, float]]:
  """Builds the evaluator.

  Args:
    model: the architecture.
    batches: starts the held-out text anew, global batches on the devices.
    token_bytes: utf-8 bytes that each id stands for; ids above are none.
    layout: where parameters and batches live.
  """
  objective = staged.make(lm.make(lm.Config(), model), model, layout)
  n_above = model.vocab_size - len(token_bytes)
  n_bytes_V = jnp.pad(jnp.asarray(token_bytes, jnp.float32), (0, n_above))

  @jax.jit
  def sums(params, batch):
    _, weight, metrics = objective(params, batch, None)
    n_bytes = (n_bytes_V[batch.targets] * batch.weights).sum()
    named = {name: value for name, (value, _) in metrics.items()}
    return {**named, "tokens": weight, "bytes": n_bytes}

  def evaluate(params: Any, step: int) -> dict[str, float]:
    del step
    total: dict[str, float] = {}
    with layout.use():
      for batch in batches():
        for name, value in sums(params, batch).items():
          total[name] = total.get(name, 0.0) + float(value)
    if not total.get("tokens"):
      raise ValueError(
        "the held-out split has no tokens: raise data.heldout_fraction or name "
        "more documents."
      )
    loss = total["loss"] / total["tokens"]
    return {
      "heldout_loss": loss,
      "perplexity": math.exp(min(loss, 700)),
      "bits_per_byte": total["loss"] / math.log(2) / max(total["bytes"], 1),
      "heldout_accuracy": total["accuracy"] / total["tokens"],
    }

  return evaluate
