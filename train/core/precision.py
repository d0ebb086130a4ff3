"""Dynamic loss scaling for fp16: 1710.03740.

fp16 flushes gradients below 6e-8 to zero and overflows above 65,504. The loss is
multiplied by a scale that doubles as long as all goes well and halves whenever
a gradient overflows; that step is then not taken. bf16 and fp32 need none.

    scale = precision.loss_scale(opt_state)      # 1 without `wrap`
    grads = jax.grad(lambda p: scale * loss(p))(params)
    grads = jax.tree.map(lambda g: g / scale, grads)
    updates, opt_state = optimizer.update(grads, opt_state, params)
"""

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from configs import fields
from configs.ranges import Count

SMALLEST, LARGEST = 2.0**-24, 2.0**24  # scales; past them something is wrong


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How the scale moves."""

  # Objectives are sums over tokens, so start below the customary 2**15.
  init: Annotated[float, f"[{SMALLEST}, {LARGEST}]"] = 2.0**10
  growth_steps: Count = 2000  # steps without overflow until it doubles

  def __post_init__(self):
    fields.check(self)


class ScaledState(NamedTuple):
  """The scale, beside the state of the optimizer that it guards."""

  scale: Float[Array, ""]
  n_good: Int[Array, ""]  # steps since the scale last moved
  skipped: Bool[Array, ""]  # whether the last step was not taken
  inner: optax.OptState


def wrap(
  optimizer: optax.GradientTransformation, config: Config
) -> optax.GradientTransformationExtraArgs:
  """Skips steps with an overflow and adjusts the scale; nothing else changes.

  A skipped step leaves parameters, moments and schedule to the bit as they were.
  """
  inner = optax.with_extra_args_support(optimizer)

  def init(params):
    return ScaledState(
      scale=jnp.asarray(config.init, jnp.float32),
      n_good=jnp.zeros((), jnp.int32),
      skipped=jnp.zeros((), bool),
      inner=inner.init(params),
    )

  def update(grads, state, params=None, **extra):
    fits = _is_finite(grads)
    updates, after = inner.update(grads, state.inner, params, **extra)
    updates = jax.tree.map(lambda u: jnp.where(fits, u, 0), updates)
    after = jax.tree.map(
      lambda new, old: jnp.where(fits, new, old), after, state.inner
    )
    n_good = jnp.where(fits, state.n_good + 1, 0)
    grows = n_good == config.growth_steps
    factor = jnp.where(fits, jnp.where(grows, 2.0, 1.0), 0.5)
    return updates, ScaledState(
      scale=jnp.clip(state.scale * factor, SMALLEST, LARGEST),
      n_good=jnp.where(grows, 0, n_good),
      skipped=~fits,
      inner=after,
    )

  return optax.GradientTransformationExtraArgs(init, update)


def loss_scale(opt_state: optax.OptState) -> Float[Array, ""] | float:
  """What to multiply the loss by, and to divide its gradients by."""
  return opt_state.scale if is_scaled(opt_state) else 1.0


def is_scaled(opt_state: optax.OptState) -> bool:
  """Whether overflows are expected, and dealt with here."""
  return isinstance(opt_state, ScaledState)


def metrics(
  opt_state: optax.OptState,
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
  """What the step reports: the scale, and 1 if it was skipped."""
  if not is_scaled(opt_state):
    return {}
  one = jnp.ones(())
  skipped = opt_state.skipped.astype(jnp.float32)
  return {"loss_scale": (opt_state.scale, one), "skipped": (skipped, one)}


def _is_finite(tree: optax.Updates) -> Bool[Array, ""]:
  finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.stack(finite).all()
