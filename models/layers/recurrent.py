"""Layers that read token by token: Elman's, LSTM, GRU.

Elman: Finding Structure in Time, 1990.  LSTM: Hochreiter and Schmidhuber, 1997,
with the forget gate of Gers and others, 2000, which starts open (Jozefowicz and
others, 2015).  GRU: arXiv 1406.1078, the reset behind the product, as in cuDNN.
A layer may look at another text ahead of each token (models/layers/additive.py).
What goes on in time is fp32, products too: in bf16 every token would round it.
Extra letters: U units, J numbers that a unit reads (its gates and what it may
take up), S numbers that a unit keeps, of which the first is what it says.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.cache import LayerState, Memory
from models.layers.dense import vector, weight
from models.layers.mask import Mask
from models.weights import Weight, einsum
from sharding import context, rules
from sharding.rules import constrain


def _elman(x, r, state):
  del state
  return jnp.tanh(x + r).swapaxes(1, 2)


def _lstm(x, r, state):
  take, forget, new, say = jnp.moveaxis(x + r, 1, 0)
  held = jax.nn.sigmoid(forget) * state[..., 1]
  held += jax.nn.sigmoid(take) * jnp.tanh(new)
  return jnp.stack([jax.nn.sigmoid(say) * jnp.tanh(held), held], axis=-1)


def _gru(x, r, state):
  reset, stay = jnp.moveaxis(jax.nn.sigmoid(x[:, :2] + r[:, :2]), 1, 0)
  new = jnp.tanh(x[:, 2] + reset * r[:, 2])
  return ((1 - stay) * new + stay * state[..., 0])[..., None]


class Cell(NamedTuple):
  """One step of a layer."""

  # (of the token [B, J, U], of what was said before [B, J, U], state [B, U, S])
  # -> state
  step: Callable[[Array, Array, Array], Array]
  n_read: int  # J; in the order of torch
  n_kept: int  # S
  bias: tuple[float, ...]  # of each of J at the start
  resets: bool = False  # what was said has a bias within the reset


CELLS = {
  "elman": Cell(_elman, 1, 1, (0.0,)),
  "lstm": Cell(_lstm, 4, 2, (0.0, 1.0, 0.0, 0.0)),
  "gru": Cell(_gru, 3, 1, (0.0, 0.0, 0.0), resets=True),
}


class Sight(NamedTuple):
  """Another text, as a layer looks at it."""

  # (what the units said [B, U], visible [B, S]) -> what they see [B, D], and
  # what each unit reads of that [B, J, U]
  look: Callable[[Array, Array], tuple[Array, Array]]
  visible: Bool[Array, "B T S"]


class Kept:
  """What a config with `cell` and `d_model` tells the cache and the FLOP count.

  A unit is a head of one number.
  """

  pattern = ("state",)
  window = None
  n_heads = property(lambda self: self.d_model)
  d_head = 1

  @property
  def state(self) -> Memory:
    """What decoding keeps."""
    n_kept = CELLS[self.cell].n_kept
    return Memory({}, 0, (self.d_model, 1, n_kept), n_flops=0)


class Layer(nn.Module):
  """n_units of one kind, each of which hears what all of them said before."""

  cell: str
  n_units: int
  dtype: jnp.dtype
  backward: bool = False  # reads every text from its end

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    mask: Mask,
    state: LayerState | None = None,
    sight: Sight | None = None,
  ) -> tuple[tuple[Array, Array | None], LayerState | None]:
    """Reads a row behind a state, or a packed row from the start of each text.

    Args:
      x: the row.
      mask: tells texts and padding.
      state: of what was read before.
      sight: of another text.

    Returns:
      what the units say, and what they saw ahead of that; and the new state.

    Raises:
      ValueError: rows are split over mesh.context.
    """
    if state is None and (n := context.size(rules.current())) > 1:
      raise ValueError(
        f"mesh.context={n} splits rows, and a recurrent state goes from token "
        "to token: give context=1, and split widths instead."
      )
    cell = CELLS[self.cell]
    read_BTJU, w = self._weights(cell, x)
    bias = None
    if cell.resets:
      bias = vector(self, "state_bias", (self.n_units,), ("heads",))
    segments = mask.q_segments
    if state is None:
      before = jnp.zeros((x.shape[0], self.n_units, cell.n_kept), jnp.float32)
      starts, moves = firsts(segments, self.backward), jnp.ones_like(segments)
    else:  # one text a row, and padding anywhere: it says nothing
      before = state.state[:, :, 0]
      starts, moves = jnp.zeros_like(segments), segments
    (said_BTU, seen), after = scan(
      cell,
      read_BTJU,
      lambda said: _hear(said, w, bias),
      starts.astype(bool),
      moves.astype(bool),
      before,
      backward=self.backward,
      sight=sight,
    )
    said_BTU = constrain(
      said_BTU.astype(self.dtype), "batch", "length", "act_heads"
    )
    if state is not None:
      state = state.replace(state=after[:, :, None])
    return (said_BTU, seen), state

  def _weights(
    self, cell: Cell, x: Float[Array, "B T D"]
  ) -> tuple[Float[Array, "B T J U"], Weight]:
    """What every token says, for all tokens at once, and the other matrix."""
    inner, axes = (cell.n_read, self.n_units), ("gates", "heads")

    def matrix(name, width, dtype):
      # Everything that a unit sums up has a variance of its inputs' size.
      return weight(
        self,
        name,
        (width, *inner),
        ("embed", *axes),
        width**-0.5,
        dtype=dtype,
      )

    read = einsum(
      "BTD,DJU->BTJU",
      x,
      matrix("input", x.shape[-1], self.dtype),
      self.dtype,
      jnp.float32,
    )
    start = lambda _, shape, dtype: jnp.broadcast_to(  # noqa: E731
      jnp.asarray(cell.bias, dtype)[:, None], shape
    )
    bias = vector(self, "bias", inner, axes, start)
    read += bias.astype(jnp.float32)[None, None]
    read = constrain(read, "batch", "length", None, "act_heads")
    return read, matrix("state", self.n_units, jnp.dtype(jnp.float32))


def _hear(
  said: Float[Array, "B U"], w: Weight, bias: Weight | None
) -> Float[Array, "B J U"]:
  r = einsum("BD,DJU->BJU", said, w, jnp.dtype(jnp.float32))
  if bias is not None:
    r = r.at[:, 2].add(bias.astype(jnp.float32)[None])
  return r


def firsts(segments: Int[Array, "B T"], backward: bool) -> Bool[Array, "B T"]:
  """The tokens with which a text begins, or ends if it is read backward."""
  if backward:
    segments = segments[:, ::-1]
  before = jnp.pad(segments, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  found = jnp.not_equal(segments, before)
  return found[:, ::-1] if backward else found


def scan(
  cell: Cell,
  read: Float[Array, "B T J U"],
  hear: Callable[[Array], Array],
  starts: Bool[Array, "B T"],
  moves: Bool[Array, "B T"],
  state: Float[Array, "B U S"],
  *,
  backward: bool = False,
  sight: Sight | None = None,
) -> tuple[tuple[Array, Array | None], Float[Array, "B U S"]]:
  """What the units say and saw at every token, what they keep at last; fp32.

  Args:
    cell: of the layer.
    read: what every token says to each unit.
    hear: what the units said, to what each hears of it.
    starts: at these tokens nothing was kept.
    moves: at other tokens nothing changes.
    state: ahead of the row.
    backward: from the last token to the first.
    sight: of another text.
  """

  def step(state, token):
    read_BJU, start_B, moves_B, visible = token
    state = jnp.where(start_B[:, None, None], 0.0, state)
    context = None
    if sight is not None:
      context, more = sight.look(state[..., 0], visible)
      read_BJU += more
    new = cell.step(read_BJU, hear(state[..., 0]), state)
    state = jnp.where(moves_B[:, None, None], new, state)
    state = constrain(state, "batch", "act_heads", None)
    return state, (state[..., 0], context)

  visible = None if sight is None else sight.visible
  tokens = jax.tree.map(
    lambda x: x.swapaxes(0, 1), (read, starts, moves, visible)
  )
  state, found = jax.lax.scan(step, state, tokens, reverse=backward)
  return jax.tree.map(lambda x: x.swapaxes(0, 1), found), state
