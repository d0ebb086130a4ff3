"""muP: an lr and an init that were tuned on a narrow model serve a wide one.

Tensor Programs V, arXiv 2203.03466, Table 3, for optimizers whose steps do not
know how large the gradient is: Adam, and Lion, which is all signs. With d_model
m times that of the base,

    weights                                   initial std    step
    input: embedding, positions, norm, bias   1              1
    hidden: inputs and outputs grow           1 / sqrt(m)    1 / m
    output: inputs grow, the head first       1 / m          1 / m

of what they are without. Deviations: heads, kv heads and d_ff are taken to grow
m-fold with d_model; d_head stays, and so does attention's 1 / sqrt(d_head). The
output's multiplier 1 / m is part of its weight: nothing changes when it is
served. Decay is not scaled: a weight loses lr * weight_decay of itself a step at
any width.
"""

from typing import Any

import jax
import optax

from models import leaves

Axes = Any  # a tree like the parameters, of tuples of logical names

GROWING = frozenset({"embed", "embed_out", "heads", "kv_heads", "mlp"})
# Kind of weight -> the power of 1 / m.
_INIT = {"input": 0.0, "hidden": 0.5, "output": 1.0}
_STEP = {"input": 0.0, "hidden": 1.0, "output": 1.0}


def rescale(params: Any, axes: Axes, base: int) -> Any:
  """Initial parameters with the spread that their width asks for.

  Args:
    params: as they are drawn without muP.
    axes: a tree like params, of tuples of logical names.
    base: d_model that init and lr were tuned at.

  Raises:
    ValueError: the head is the embedding.
  """
  return _scale(params, axes, base, _INIT)


def scale_by_width(axes: Axes, base: int) -> optax.GradientTransformation:
  """Shortens the steps of hidden and output weights.

  Args:
    axes: a tree like the parameters, of tuples of logical names.
    base: d_model that init and lr were tuned at.

  Raises:
    ValueError: the head is the embedding.
  """
  kinds(axes, base)  # before anything is built
  return optax.stateless(lambda steps, _: _scale(steps, axes, base, _STEP))


def kinds(axes: Axes, base: int) -> Any:
  """A tree like the parameters of "input", "hidden" and "output".

  Raises:
    ValueError: the head is the embedding.
  """
  if "head" not in axes:
    raise ValueError(
      f"optim.mup_width={base} with a tied head: the embedding and the head "
      "ask for different steps and cannot share a table. Set model.tied=False "
      "in a family that has it, or leave optim.mup_width out."
    )
  kinds = leaves.map(_kind, axes)
  # A table of rows by its names; as the head it reads what it else writes.
  return {**kinds, "head": jax.tree.map(lambda _: "output", kinds["head"])}


def _kind(names: leaves.Names) -> str:
  def grows(dims):
    return bool(GROWING.intersection(names[dim] for dim in dims))

  inputs, outputs = leaves.sides(names)
  if not outputs or not grows(inputs):
    return "input"
  return "hidden" if grows(outputs) else "output"


def _scale(tree: Any, axes: Axes, base: int, powers: dict[str, float]) -> Any:
  m = _d_model(axes, tree) / base
  return jax.tree.map(
    lambda kind, x: x * m ** -powers[kind], kinds(axes, base), tree
  )


def _d_model(axes: Axes, tree: Any) -> int:
  names = jax.tree.leaves(axes["head"], is_leaf=leaves.is_names)[0]
  return jax.tree.leaves(tree["head"])[0].shape[names.index("embed")]
