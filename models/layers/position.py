"""Positions: learned, rotary (arXiv 2104.09864) with its scalings, relative.

Linear: 2306.15595.  YaRN: 2309.00071.  Llama 3: 2407.21783, section 3.
LongRoPE: 2402.13753.
ALiBi, biases in the place of positions: 2108.12409.
Relative, in buckets: T5, 1910.10683.
Phases come from two small tables that the host computes in float64, so they
are right to 1e-7 at any position; a bf16 phase errs by 2.0 below position 4096.
Where the base follows a text's length (dynamic NTK, as transformers has it), they
are made on the device, right to 2e-7 of themselves.
Extra letters: U buckets of distances.
"""

import dataclasses
import math
import typing
from typing import Annotated, Literal

import flax.struct
import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Positive
from models.layers.mask import Mask
from sharding import context, rules

_BLOCK = 1024  # positions are read as high * 1024 + low
LONGEST = _BLOCK**2  # positions of a text: 1,048,576
Length = Annotated[int, f"[1, {LONGEST}]"]  # phases are exact so far


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
  """How rotary frequencies are stretched beyond the trained length."""

  kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
  factor: Annotated[float, "[1, inf)"]  # new length / original length
  original_length: Length | None = None  # tokens; all but linear
  low: Positive | None = None  # turns stretched in full; yarn 1, llama3 1
  high: Positive | None = None  # turns left as they are; yarn 32, llama3 4
  # Of the phases; yarn: 0.1 ln(factor) + 1 where None, longrope:
  # sqrt(1 + ln(factor) / ln(original_length)).
  attention_factor: Positive | None = None
  # longrope: by how much every pair is stretched in a model that reads no more
  # than original_length tokens, and in one that reads more.
  short: tuple[Positive, ...] | None = None
  long: tuple[Positive, ...] | None = None

  def __post_init__(self):
    fields.check(self)
    by_turns = self.kind in ("yarn", "llama3")
    by_pair = self.kind == "longrope"
    if self.kind != "linear" and self.original_length is None:
      raise ValueError(
        f"original_length={self.original_length}: {self.kind} needs the "
        "number of tokens that the base model was trained on."
      )
    if by_pair and (self.short is None or self.long is None):
      raise ValueError(
        f"short={self.short} and long={self.long}: longrope needs a factor for "
        "every pair, in both."
      )
    unread = () if by_turns else ("low", "high")
    unread += () if self.kind != "linear" else ("original_length",)
    unread += () if self.kind in ("yarn", "longrope") else ("attention_factor",)
    unread += () if by_pair else ("short", "long")
    for name in unread:
      if getattr(self, name) is not None:
        raise ValueError(
          f"{name}={getattr(self, name)} says nothing to {self.kind} scaling: "
          "leave it None."
        )
    low, high = self.turns
    if low >= high:
      raise ValueError(
        f"low={low} must be below high={high}: between them stretching fades."
      )

  @property
  def turns(self) -> tuple[float, float]:
    """The range of turns over which stretching fades."""
    return (
      1.0 if self.low is None else self.low,
      (32.0 if self.kind == "yarn" else 4.0)
      if self.high is None
      else self.high,
    )


def _linear(frequency, d_head, theta, s, length):
  return frequency / s.factor, 1.0


def _llama3(frequency, d_head, theta, s, length):
  low, high = s.turns
  turns = s.original_length * frequency / (2 * math.pi)
  keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return frequency * (keep + (1 - keep) / s.factor), 1.0


def _longrope(frequency, d_head, theta, s, length):
  stretch = np.array(s.long if length > s.original_length else s.short)
  factor = s.attention_factor
  if factor is None:
    factor = math.sqrt(1 + math.log(s.factor) / math.log(s.original_length))
  return frequency / stretch, factor


def _yarn(frequency, d_head, theta, s, length):
  def dimension(turns):  # the pair that turns so often in the original length
    length = s.original_length / (turns * 2 * math.pi)
    return d_head * math.log(length) / (2 * math.log(theta))

  low, high = s.turns
  first = max(math.floor(dimension(high)), 0)
  last = min(math.ceil(dimension(low)), d_head - 1)
  ramp = (np.arange(d_head // 2) - first) / max(last - first, 1e-3)
  keep = 1 - np.clip(ramp, 0.0, 1.0)
  factor = s.attention_factor
  if factor is None:
    factor = 0.1 * math.log(s.factor) + 1.0
  return frequency * (keep + (1 - keep) / s.factor), factor


_SCALINGS = {
  "linear": _linear,
  "yarn": _yarn,
  "llama3": _llama3,
  "longrope": _longrope,
}


def _frequencies(d_head: int, theta: float) -> np.ndarray:
  return theta ** (-np.arange(0, d_head, 2, dtype=np.float64) / d_head)


def check(d_head: int, d_rotary: int, scaling: Scaling | None) -> None:
  """Checks that a part of every head can turn, scaled so.

  Raises:
    ValueError: it is no whole number of pairs, or the scaling is of others.
  """
  if d_rotary % 2 or not d_rotary:
    raise ValueError(
      f"d_head={d_head} has {d_rotary} dimensions that turn with the position "
      "(with a rotary_share, that share of it): they turn in pairs."
    )
  if scaling is None:
    return
  if scaling.kind == "dynamic" and d_rotary == 2:
    raise ValueError(
      f"d_head={d_head} has one frequency, and rope_scaling.kind=dynamic changes "
      "all but the first: turn 4 dimensions or more."
    )
  for name in ("short", "long"):
    factors, n_pairs = getattr(scaling, name), d_rotary // 2
    if factors is not None and len(factors) != n_pairs:
      raise ValueError(
        f"rope_scaling.{name} has {len(factors)} factors for the {n_pairs} "
        f"pairs that turn of d_head={d_head}: give one for each."
      )


@flax.struct.dataclass
class Rotary:
  """Cosine and sine of every pair's phase, fp32, made once for all layers."""

  cos: Float[Array, "B T H"]
  sin: Float[Array, "B T H"]


def rotary(
  positions: Int[Array, "B T"],
  d_head: int,
  theta: float,
  scaling: Scaling | None = None,
  length: int = LONGEST,
) -> Rotary:
  """Phases position * frequency of the d_head / 2 pairs.

  cos(a + b) = cos a cos b - sin a sin b joins the two tables, exact in fp32.

  Args:
    positions: of the tokens in their text, which dynamic scaling takes for as
      long as it is here: decoding goes on with the keys of shorter ones.
    d_head: dimensions that turn.
    theta: base of the frequencies.
    scaling: of the frequencies.
    length: of the longest text, by which longrope chooses for all texts.
  """
  frequency, factor = _frequencies(d_head, theta), 1.0
  if scaling is not None and scaling.kind == "dynamic":
    return _dynamic(positions, frequency, d_head, scaling)
  if scaling is not None:
    scale = _SCALINGS[scaling.kind]
    frequency, factor = scale(frequency, d_head, theta, scaling, length)
  low = np.outer(np.arange(_BLOCK), frequency)
  high = np.outer(np.arange(_BLOCK) * _BLOCK, frequency)
  table = [
    jnp.asarray(f(x), jnp.float32)
    for x in (low, high)
    for f in (np.cos, np.sin)
  ]
  i_low, i_high = positions % _BLOCK, positions // _BLOCK
  cos_low, sin_low = table[0][i_low], table[1][i_low]
  cos_high, sin_high = table[2][i_high], table[3][i_high]
  return Rotary(
    cos=factor * (cos_low * cos_high - sin_low * sin_high),
    sin=factor * (sin_low * cos_high + cos_low * sin_high),
  )


def _dynamic(
  positions: Int[Array, "B T"],
  frequency: np.ndarray,
  d_head: int,
  s: Scaling,
) -> Rotary:
  """The base grows with a text, so that its slowest pair still turns as far."""
  lengths = _lengths(positions).astype(jnp.float32)
  grown = jnp.maximum(s.factor * lengths / s.original_length - s.factor + 1, 1)
  # The base to the power of -2i / d is the frequency of pair i.
  share = np.float32(np.arange(0, d_head, 2) / (d_head - 2))
  slower = jnp.exp(-share[None, None] * jnp.log(grown)[..., None])
  frequencies = np.float32(frequency)[None, None] * slower
  phase = positions[..., None] * frequencies
  return Rotary(cos=jnp.cos(phase), sin=jnp.sin(phase))


def _lengths(positions: Int[Array, "B T"]) -> Int[Array, "B T"]:
  """Of the text of every token: it ends where positions no longer grow."""
  layout, n = rules.current(), positions.shape[1]
  order = np.arange(n) if layout is None else context.columns(layout, n)
  positions = positions[:, np.argsort(order)]
  is_last = jnp.diff(positions, append=-1) <= 0
  last = jnp.where(is_last, np.arange(n)[None], n)
  last = jax.lax.cummin(last, axis=1, reverse=True)
  return jnp.take_along_axis(positions, last, axis=1)[:, order] + 1


def rotate(
  x: Float[Array, "B T N H"], phases: Rotary, *, interleaved: bool = False
) -> Float[Array, "B T N H"]:
  """Rotates the pairs (i, i + H/2), in fp32, returned in x's type.

  Where there are fewer phases than pairs, that is of the first dimensions, and
  the others stay as they are. Interleaved, the pairs are (2 i, 2 i + 1), and
  come out as (i, i + H/2): no product of a query and a key sees the order.
  """
  n_turned = 2 * phases.cos.shape[-1]
  x, rest = x[..., :n_turned], x[..., n_turned:]
  if interleaved:
    x = jnp.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
  turned = _rotate(x, phases.cos[:, :, None], phases.sin[:, :, None])
  return jnp.concatenate([turned, rest], axis=-1) if rest.size else turned


@jax.custom_vjp
def _rotate(x: Array, cos: Array, sin: Array) -> Array:
  wide = x.astype(jnp.float32)
  if rules.platform() == "tpu":
    # Halves of 64 would waste half of a TPU's lanes. The matrix unit exchanges
    # them, exactly: 4 % fewer cycles of a step of Llama 2 7B on v5p.
    half = x.shape[-1] // 2
    turned = jnp.einsum(
      "BTNH,HI->BTNI",
      x,
      jnp.asarray(np.roll(np.eye(2 * half), half, axis=1), x.dtype),
      precision="highest",
      preferred_element_type=jnp.float32,
    )
    cos = jnp.concatenate([cos, cos], axis=-1)
    sin = jnp.concatenate([-sin, sin], axis=-1)
    return (wide * cos + turned * sin).astype(x.dtype)
  x1, x2 = jnp.split(wide, 2, axis=-1)
  rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
  return rotated.astype(x.dtype)


def _rotate_forward(x, cos, sin):
  return _rotate(x, cos, sin), (cos, sin)


def _rotate_back(phases, g):
  cos, sin = phases
  return _rotate(g, cos, -sin), None, None


_rotate.defvjp(_rotate_forward, _rotate_back)


def alibi_slopes(n_heads: int) -> Float[Array, "N"]:
  """How much a head's logits fall with every token of distance.

  Powers of 2**(-8 / P), where P is the largest power of two up to the number of
  heads; those beyond P lie between the first ones.
  """
  n_even = 1 << (n_heads.bit_length() - 1)
  powers = np.arange(1, n_even + 1) / n_even
  between = (np.arange(n_heads - n_even) + 0.5) / n_even
  return jnp.asarray(2.0 ** (-8 * np.concatenate([powers, between])), "float32")


# Unchecked: as a pytree it also carries what is no array.
@typing.no_type_check
@flax.struct.dataclass
class RelativeBias:
  """Numbers added to the logits of every head, by the distance to the key.

  Near distances have a bucket each, farther ones share buckets that widen as
  their logarithm; from `farthest` on there is one.
  """

  table: Float[Array, "U N"]
  causal: bool = flax.struct.field(pytree_node=False)  # all keys lie behind
  farthest: int = flax.struct.field(pytree_node=False)

  def dense(self, mask: Mask) -> Float[Array, "B N T S"]:
    """The bias of every query and key of a mask, fp32."""
    ahead = mask.kv_positions[:, None] - mask.q_positions[:, :, None]
    buckets = bucket(ahead, self.table.shape[0], self.causal, self.farthest)
    return jnp.moveaxis(self.table.astype(jnp.float32)[buckets], -1, 1)


def bucket(
  ahead: Int[Array, "..."], n_buckets: int, causal: bool, farthest: int
) -> Int[Array, "..."]:
  """The bucket of keys that lie so many tokens ahead of their queries.

  The upper half of the buckets is of keys ahead, where those are seen. Of each
  direction one half is exact and the other logarithmic.
  """
  first = 0
  if not causal:
    n_buckets //= 2
    first = n_buckets * jnp.greater(ahead, 0)
  distance = jnp.maximum(-ahead, 0) if causal else jnp.abs(ahead)
  n_exact = n_buckets // 2
  # On the host in float64: in fp32 a logarithm puts some borders to either side.
  steps = np.arange(farthest + 1)
  turns = np.log(np.maximum(steps, n_exact) / n_exact)
  turns *= (n_buckets - n_exact) / math.log(farthest / n_exact)
  wide = np.minimum(n_exact + np.int64(turns + 1e-9), n_buckets - 1)
  of_distance = jnp.asarray(np.where(steps < n_exact, steps, wide), jnp.int32)
  return first + of_distance[jnp.minimum(distance, farthest)]
