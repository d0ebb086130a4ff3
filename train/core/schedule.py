"""Schedules: step -> factor in [0, 1] of the peak learning rate.

One convention for all. With W warm-up steps out of T, step i < W gets
(i + 1) / (W + 1), so that already the first step moves; step W gets 1; the last
step, T - 1, gets exactly the floor, and so does any step after it.

Cosine: 1608.03983.  One-cycle: 1708.07120.  Warm-up, stable, decay: 2404.06395.
"""

import dataclasses

import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
  """Stays at the peak."""

  warmup_steps: int = 0  # steps below the peak

  def __post_init__(self):
    if self.warmup_steps < 0:
      raise ValueError(f"warmup_steps={self.warmup_steps} is below 0.")

  def peak(self, total_steps: int) -> int:
    """The step that gets the factor 1."""
    if self.warmup_steps >= total_steps:
      raise ValueError(
        f"schedule.warmup_steps={self.warmup_steps} never reaches the peak in "
        f"a run of {total_steps} steps: warm up for at most {total_steps - 1}."
      )
    return self.warmup_steps

  def rise(self, n_steps: int) -> optax.Schedule:
    """Factors until the peak, which is at n_steps."""
    return optax.linear_schedule(1 / (n_steps + 1), 1.0, n_steps)

  def fall(self, n_steps: int) -> optax.Schedule:
    """Factors from the peak, 1 at step 0, to the floor at n_steps."""
    del n_steps
    return optax.constant_schedule(1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Constant):
  """Falls along a straight line."""

  floor: float = 0.0  # factor at the last step

  def __post_init__(self):
    super().__post_init__()
    _check_share("floor", self.floor)

  def fall(self, n_steps: int) -> optax.Schedule:
    """See Constant."""
    return optax.linear_schedule(1.0, self.floor, n_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Linear):
  """Falls along half a cosine."""

  floor: float = 0.1  # factor at the last step; as in Chinchilla, 2203.15556

  def fall(self, n_steps: int) -> optax.Schedule:
    """See Constant."""
    return optax.cosine_decay_schedule(1.0, n_steps, alpha=self.floor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Polynomial(Linear):
  """Falls as a power of the share of steps that are left."""

  power: float = 2.0  # 1 is a straight line

  def __post_init__(self):
    super().__post_init__()
    if self.power <= 0:
      raise ValueError(f"power={self.power} must be above 0; 1 is linear.")

  def fall(self, n_steps: int) -> optax.Schedule:
    """See Constant."""
    return optax.polynomial_schedule(1.0, self.floor, self.power, n_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WSD(Linear):
  """Warm-up, stable, decay: falls along a straight line at the very end."""

  decay_fraction: float = 0.2  # share of all steps that fall; 2405.18392

  def __post_init__(self):
    super().__post_init__()
    _check_share("decay_fraction", self.decay_fraction)

  def fall(self, n_steps: int) -> optax.Schedule:
    """See Constant."""
    total_steps = self.warmup_steps + n_steps + 1
    n_falling = min(n_steps, max(1, round(self.decay_fraction * total_steps)))
    return optax.linear_schedule(
      1.0, self.floor, n_falling, transition_begin=n_steps - n_falling
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneCycle:
  """Rises and falls along half cosines; defaults of torch's OneCycleLR."""

  rise_fraction: float = 0.3  # share of all steps up to the peak
  start: float = 1 / 25  # factor at step 0
  floor: float = 1 / 250_000  # factor at the last step

  def __post_init__(self):
    for name in ("rise_fraction", "start", "floor"):
      _check_share(name, getattr(self, name))

  def peak(self, total_steps: int) -> int:
    """The step that gets the factor 1."""
    return max(0, round(self.rise_fraction * total_steps) - 1)

  def rise(self, n_steps: int) -> optax.Schedule:
    """Factors until the peak, which is at n_steps."""
    missing = optax.cosine_decay_schedule(1.0 - self.start, n_steps)
    return lambda step: 1.0 - missing(step)

  def fall(self, n_steps: int) -> optax.Schedule:
    """Factors from the peak, 1 at step 0, to the floor at n_steps."""
    return optax.cosine_decay_schedule(1.0, n_steps, alpha=self.floor)


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
  peak = config.peak(total_steps)
  n_falling = total_steps - 1 - peak
  if n_falling == 0:  # the run ends at its peak
    fall = optax.constant_schedule(1.0)
  else:
    fall = config.fall(n_falling)
  if peak == 0:
    return fall
  return optax.join_schedules([config.rise(peak), fall], [peak])


def _check_share(name: str, value: float) -> None:
  if not 0 <= value <= 1:
    raise ValueError(f"{name}={value} must lie between 0 and 1.")
