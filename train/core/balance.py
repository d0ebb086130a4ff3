"""Routers' biases go by the load of their experts: arXiv 2408.15664.

In the place of a gradient comes by how much more tokens than the mean each
expert had in the whole batch (models/layers/moe.py). After every step its bias
has moved by `speed` against that sign, and nothing else of an optimizer sees
it: no clipping, no moments, no decay, no average.
"""

import jax
import optax
from jax import numpy as jnp

from models import leaves
from models.leaves import Axes

SPEED = 0.001  # DeepSeek-V3, arXiv 2412.19437, section 4.2


def beside(
  inner: optax.GradientTransformation, axes: Axes, speed: float
) -> optax.GradientTransformationExtraArgs:
  """An optimizer of all that gradients train, and the biases beside it.

  Args:
    inner: of the trees that `leaves.split` gives first.
    axes: of all parameters.
    speed: what a bias moves by at every step.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return inner.init(leaves.split(axes, params)[0])

  def update(updates, state, params, **extra):
    gradients, excess = leaves.split(axes, updates)
    trained, _ = leaves.split(axes, params)
    steps, state = inner.update(gradients, state, trained, **extra)
    moves = jax.tree.map(lambda x: -speed * jnp.sign(x), excess)
    return leaves.join(steps, moves), state

  return optax.GradientTransformationExtraArgs(init, update)
