"""Mamba-2's mixer: a state of fixed size in the place of keys and values.

arXiv 2405.21060. Every head keeps a matrix: it fades by a factor that the token
says, and the token adds an outer product to it. Rows are read in chunks, within
which this is attention with a decay (section 6); one token is a chunk of one.
Extra letters: U tokens of a chunk, G groups of heads that share inputs and
outputs, S width of a state, J taps of the convolution.
"""

import dataclasses
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Count
from models.cache import LayerState
from models.layers.dense import vector, weight
from models.layers.mask import Mask
from models.layers.norm import rms_norm
from models.weights import Weight, einsum
from sharding import context, rules
from sharding.rules import constrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of the states, and of what leads to them."""

  d_state: Count = 128
  n_groups: Count = 1  # of heads that share what is written and what is read
  n_taps: Count = 4  # tokens that the convolution ahead of the states sees
  chunk: Count = 256  # tokens at once; changes no number but by rounding

  def __post_init__(self):
    fields.check(self)


class Mixer(nn.Module):
  """States of n_heads heads, [H, S] each."""

  config: Config
  n_heads: int
  d_head: int
  dtype: jnp.dtype
  norm_epsilon: float

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    mask: Mask,
    state: LayerState | None = None,
  ) -> tuple[Float[Array, "B T D"], LayerState | None]:
    """Reads a row behind a state, or a packed row from the start of each text.

    Raises:
      ValueError: rows are split over mesh.context.
    """
    c, d_model, f32 = self.config, x.shape[-1], jnp.float32
    if state is None and (n := context.size(rules.current())) > 1:
      raise ValueError(
        f"mesh.context={n} splits rows, and Mamba-2's states go from token to "
        "token: give context=1, and split widths or heads instead."
      )
    segments = mask.q_segments
    heads, groups = (self.n_heads, self.d_head), (c.n_groups, c.d_state)
    inputs = {
      "x": self._project(x, "x", heads, ("heads", "head")),
      "b": self._project(x, "b", groups, (None, None)),
      "c": self._project(x, "c", groups, (None, None)),
    }
    z_BTNH = self._project(x, "z", heads, ("heads", "head"))
    w = weight(
      self, "dt", (d_model, self.n_heads), ("embed", "heads"), dtype=self.dtype
    )
    dt_BTN = einsum("BTD,DN->BTN", x, w, self.dtype, f32)
    dt_BTN = jax.nn.softplus(
      dt_BTN + self._vector("dt_bias", _steps)[None, None]
    )

    before = None if state is None else state.inputs
    convolved, after = {}, {}
    for name, y in inputs.items():
      axes = ("heads", "head") if name == "x" else (None, None)
      taps = weight(
        self, f"conv_{name}", (c.n_taps, *y.shape[2:]), (None, *axes), 0.2
      )
      bias = vector(self, f"conv_{name}_bias", y.shape[2:], axes)
      y, after[name] = convolve(
        y, taps, segments, None if before is None else before[name]
      )
      convolved[name] = jax.nn.silu(y + bias.astype(f32)[None, None])

    start = jnp.zeros((x.shape[0], *heads, c.d_state), f32)
    if (
      state is not None
    ):  # one text a row, and padding anywhere: it says nothing
      dt_BTN *= jnp.not_equal(segments, 0)[..., None]
      start, segments = state.state, jnp.ones_like(segments)
    y_BTNH, end = scan(
      c.chunk,
      convolved["x"] * dt_BTN[..., None],
      -jnp.exp(self._vector("a_log", _rates))[None, None] * dt_BTN,
      convolved["b"],
      convolved["c"],
      segments,
      start,
    )
    y_BTNH += self._vector("skip", 1.0)[None, None, :, None] * convolved["x"]
    y_BTNH *= jax.nn.silu(z_BTNH.astype(f32))
    out = self._out(self._normed(y_BTNH).astype(self.dtype), d_model)
    return out, None if state is None else LayerState(after, end)

  def _project(
    self, x: Array, name: str, shape: tuple[int, int], axes: tuple
  ) -> Float[Array, "B T N H"]:
    w = weight(
      self, name, (x.shape[-1], *shape), ("embed", *axes), dtype=self.dtype
    )
    y = einsum("BTD,DNH->BTNH", x, w, self.dtype)
    where = "act_heads" if axes[0] == "heads" else None
    return constrain(y, "batch", "length", where, None)

  def _vector(self, name: str, value: Any) -> Float[Array, "N"]:
    v = vector(self, name, (self.n_heads,), ("heads",), value)
    return v.astype(jnp.float32)

  def _normed(self, y: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """Over the heads of a group together."""
    scale = vector(self, "scale", y.shape[2:], ("heads", "head"), 1.0)
    by_group = (self.config.n_groups, -1, self.d_head)
    wide = y.reshape(*y.shape[:2], *by_group)
    one = jnp.ones(wide.shape[3:], jnp.float32)
    normed = rms_norm(wide, one, self.norm_epsilon).reshape(y.shape)
    return normed * scale.astype(jnp.float32)[None, None]

  def _out(
    self, y: Float[Array, "B T N H"], d_model: int
  ) -> Float[Array, "B T D"]:
    axes = ("heads", "head", "embed")
    w: Weight = weight(
      self, "o", (self.n_heads, self.d_head, d_model), axes, dtype=self.dtype
    )
    out = einsum("BTNH,NHD->BTD", y, w, self.dtype)
    return constrain(out, "batch", "stream", "act_embed")


def _steps(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """What softplus makes log-uniform in [0.001, 0.1], as in the paper."""
  low, high = jnp.log(0.001), jnp.log(0.1)
  steps = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
  return steps + jnp.log(-jnp.expm1(-steps))


def _rates(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """Logarithms of what is uniform in [1, 16], as in the paper."""
  return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def convolve(
  y: Float[Array, "B T N H"],
  taps: Weight,
  segments: Int[Array, "B T"],
  before: Float[Array, "B I N H"] | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B I N H"] | None]:
  """Every number's own mean of the last J tokens of its text, fp32.

  Args:
    y: what is convolved.
    taps: [J, N, H], the last one of the token itself.
    segments: 0 is padding.
    before: the I = J - 1 tokens ahead of the row; None: each text starts in it.

  Returns:
    the means, and the last I tokens with the row, if some were given.
  """
  wide, n_taps = y.astype(jnp.float32), taps.shape[0]
  taps = taps.astype(jnp.float32)
  length, n_before = y.shape[1], n_taps - 1
  if before is None:
    out = jnp.zeros_like(wide)
    for ago in range(n_taps):
      moved = jnp.pad(wide, ((0, 0), (ago, 0), (0, 0), (0, 0)))[:, :length]
      own = jnp.pad(segments, ((0, 0), (ago, 0)))[:, :length]
      same = jnp.equal(own, segments)[..., None, None]
      out += jnp.where(same, moved, 0) * taps[n_before - ago][None, None]
    return out, None
  # Padding may stand before the tokens: they move to the front, and back.
  is_real = jnp.not_equal(segments, 0)
  order = jnp.argsort(~is_real, axis=1, stable=True)
  front = jnp.take_along_axis(wide, order[..., None, None], axis=1)
  row = jnp.concatenate([before.astype(jnp.float32), front], axis=1)
  out = sum(row[:, i : i + length] * taps[i][None, None] for i in range(n_taps))
  back = jnp.argsort(order, axis=1)
  out = jnp.take_along_axis(out, back[..., None, None], axis=1)
  last = is_real.sum(1)[:, None] + jnp.arange(n_before)[None]
  after = jnp.take_along_axis(row, last[..., None, None], axis=1)
  return out, after.astype(before.dtype)


def scan(
  chunk: int,
  x: Float[Array, "B T N H"],
  log_decay: Float[Array, "B T N"],
  b: Float[Array, "B T G S"],
  c: Float[Array, "B T G S"],
  segments: Int[Array, "B T"],
  state: Float[Array, "B N H S"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H S"]]:
  """y_t = state_t c_t, where state_t = exp(log_decay_t) state_{t-1} + x_t b_t.

  A state does not outlive its segment. fp32; O(T chunk) time, O(chunk^2) memory.

  Args:
    chunk: tokens at once.
    x: what is written.
    log_decay: at most 0.
    b: where it is written.
    c: where it is read.
    segments: each one's tokens lie together.
    state: of the text that the first segment continues.
  """
  n_rows, length, n_heads, _ = x.shape
  size = min(chunk, length)
  pad = -length % size
  edge = jnp.pad(segments, ((0, 0), (0, pad)), mode="edge")

  def split(x: Array) -> Array:
    x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(n_rows, -1, size, *x.shape[2:]), 1, 0)

  n_shared = n_heads // b.shape[2]

  @jax.checkpoint
  def step(carry, part):
    state, of_state = carry
    x, log_decay, b, c, segments = part
    b, c = (jnp.repeat(y, n_shared, axis=2) for y in (b, c))
    total_BUN = jnp.cumsum(log_decay, axis=1)
    apart = total_BUN[:, :, None] - total_BUN[:, None]
    own = jnp.equal(segments[:, :, None], segments[:, None])
    own &= jnp.tri(size, dtype=bool)[None]
    # The inner where keeps exp finite above the diagonal, for the gradient too.
    own = own[..., None]
    fade = jnp.where(own, jnp.exp(jnp.where(own, apart, 0.0)), 0.0)
    scores = jnp.einsum("BUNS,BVNS->BUVN", c, b) * fade
    y = jnp.einsum("BUVN,BVNH->BUNH", scores, x)
    goes_on = jnp.equal(segments, of_state[:, None])[..., None]
    reach = jnp.where(goes_on, jnp.exp(total_BUN), 0.0)
    y += jnp.einsum("BUNS,BNHS->BUNH", c * reach[..., None], state)
    last = segments[:, -1]
    stays = jnp.equal(segments, last[:, None])[..., None]
    left = jnp.where(stays, jnp.exp(total_BUN[:, -1:] - total_BUN), 0.0)
    state *= reach[:, -1, :, None, None]
    state += jnp.einsum("BUNH,BUNS->BNHS", x * left[..., None], b)
    return (state, last), y

  ids = jnp.moveaxis(edge.reshape(n_rows, -1, size), 1, 0)
  parts = (*map(split, (x, log_decay, b, c)), ids)
  (state, _), y = jax.lax.scan(step, (state, segments[:, 0]), parts)
  y = jnp.moveaxis(y, 0, 1).reshape(n_rows, -1, *x.shape[2:])
  return y[:, :length], state
