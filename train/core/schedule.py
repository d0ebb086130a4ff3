"""Schedules: step -> factor in [0, 1] of the peak learning rate.

One convention for all. With W warm-up steps out of T, step i < W gets
(i + 1) / (W + 1), so that already the first step moves; step W gets 1; the last
step, T - 1, gets exactly the floor, and so does any step after it.

Cosine: 1608.03983.  One-cycle: 1708.07120.  Warm-up, stable, decay: 2404.06395.
"""

import dataclasses

import optax

from configs import fields
from configs.ranges import Natural, Positive, Share


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
  """Stays at the peak."""

  warmup_steps: Natural = 0  # steps below the peak

  def __post_init__(self):
    fields.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Falling(Constant):
  floor: Share = 0.0  # factor at the last step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(_Falling):
  """Falls along a straight line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(_Falling):
  """Falls along half a cosine."""

  floor: Share = 0.1  # factor at the last step; as in Chinchilla, 2203.15556


@dataclasses.dataclass(frozen=True, kw_only=True)
class Polynomial(_Falling):
  """Falls as a power of the share of steps that are left."""

  power: Positive = 2.0  # 1 is a straight line


@dataclasses.dataclass(frozen=True, kw_only=True)
class WSD(_Falling):
  """Warm-up, stable, decay: falls along a straight line at the very end."""

  decay_fraction: Share = 0.2  # share of all steps that fall; 2405.18392


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneCycle:
  """Rises and falls along half cosines; defaults of torch's OneCycleLR."""

  rise_fraction: Share = 0.3  # share of all steps up to the peak
  start: Share = 1 / 25  # factor at step 0
  floor: Share = 1 / 250_000  # factor at the last step

  def __post_init__(self):
    fields.check(self)


Config = Constant | Linear | Cosine | Polynomial | WSD | OneCycle
CONFIGS: dict[str, type] = {
  "constant": Constant,
  "linear": Linear,
  "cosine": Cosine,
  "polynomial": Polynomial,
  "wsd": WSD,
  "one_cycle": OneCycle,
}


def make(config: Config, total_steps: int) -> optax.Schedule:
  """Builds the schedule of a run of `total_steps` updates.

  Raises:
    ValueError: no steps, or a warm-up as long as the run.
  """
  if total_steps < 1:
    raise ValueError(f"total_steps={total_steps}: a run has at least 1 step.")
  if isinstance(config, OneCycle):
    peak = max(0, round(config.rise_fraction * total_steps) - 1)
  else:
    peak = config.warmup_steps
  if peak >= total_steps:
    raise ValueError(
      f"schedule.warmup_steps={peak} never reaches the peak in a run of "
      f"{total_steps} steps: warm up for at most {total_steps - 1}."
    )
  fall = _fall(config, total_steps - 1 - peak, total_steps)
  if peak == 0:
    return fall
  return optax.join_schedules([_rise(config, peak), fall], [peak])


def _rise(config: Config, n_steps: int) -> optax.Schedule:
  """Factors up to the peak, which is at n_steps."""
  if isinstance(config, OneCycle):
    missing = optax.cosine_decay_schedule(1.0 - config.start, n_steps)
    return lambda step: 1.0 - missing(step)
  return optax.linear_schedule(1 / (n_steps + 1), 1.0, n_steps)


def _fall(config: Config, n_steps: int, total_steps: int) -> optax.Schedule:
  """Factors from the peak, at step 0, down to the floor, at n_steps."""
  if n_steps == 0:  # the run ends at its peak
    return optax.constant_schedule(1.0)
  match config:
    case Linear():
      return optax.linear_schedule(1.0, config.floor, n_steps)
    case Polynomial():
      return optax.polynomial_schedule(1.0, config.floor, config.power, n_steps)
    case WSD():
      share = round(config.decay_fraction * total_steps)
      n_falling = min(n_steps, max(1, share))
      return optax.linear_schedule(
        1.0, config.floor, n_falling, transition_begin=n_steps - n_falling
      )
    case Cosine() | OneCycle():
      return optax.cosine_decay_schedule(1.0, n_steps, alpha=config.floor)
    case Constant():
      return optax.constant_schedule(1.0)
