"""Layers as the stages of a pipeline, through which the parts of a batch pass.

GPipe: arXiv 1811.06965.  1F1B: PipeDream-Flush, 2006.09503.  Interleaved
(several chunks of layers a stage): 2104.04473.

All stages work in lockstep. A tick is one vmap over the stages, whose dimension
is split over the mesh axis `stage`; between ticks what they hold rolls on by
one stage, which becomes a collective-permute. The backward pass is written out, each stage computing its part again
from its input: how many inputs wait is for the timetable to say, and not for
the number of parts, as it is where a scan is differentiated.
Extra letters: S stages, N repeats (chunks of a stage), W inputs that wait.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int

from sharding import rules

AXIS = "stage"
Tree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """In what order the stages work, and on how much each."""

  # gpipe: all parts forward, then all backward. 1f1b: each backward as soon as
  # it can; the inputs that wait are as many as stages, not as parts.
  schedule: Literal["gpipe", "1f1b"] = "1f1b"
  # Chunks of layers that each stage holds, every S-th of all: a part comes by
  # so often, and the bubble is so much shorter (circular, interleaved).
  n_repeats: int = 1

  def __post_init__(self):
    if self.schedule not in ("gpipe", "1f1b"):
      raise ValueError(f"schedule={self.schedule!r}: give 'gpipe' or '1f1b'.")
    if self.n_repeats < 1:
      raise ValueError(f"n_repeats={self.n_repeats}: give 1 or more.")


# Unchecked: as a pytree it also carries the work of many ticks.
@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Work:
  """What each stage does in a tick."""

  part: Int[Array, "S"]
  repeat: Int[Array, "S"]
  live: Bool[Array, "S"]  # False: in the bubble
  slot: Int[Array, "S"]  # where the input waits
  begins: Bool[Array, ""]  # the first stage works on a part's first chunk
  ends: Bool[Array, ""]  # the last stage works on a part's last chunk


@dataclasses.dataclass(frozen=True)
class Timetable:
  """Which stage works on what, when.

  An item is a part at one of its repeats; parts go around in groups of S.
  Stage s takes the i-th item in tick i + s; on the way back the stages stand
  in reverse order, as do the repeats, from the tick `turn` on.

  Raises:
    ValueError: several repeats, and parts that make no whole groups.
  """

  n_stages: int
  n_parts: int
  config: Config = Config()

  def __post_init__(self):
    if self.config.n_repeats > 1 and self.n_parts % self.n_stages:
      raise ValueError(
        f"{self.n_parts} parts make no whole groups of {self.n_stages} stages, "
        f"and with n_repeats={self.config.n_repeats} they go around in groups: "
        f"make train.n_micro a multiple of {self.n_stages}, or n_repeats=1."
      )

  @property
  def n_items(self) -> int:
    """Items that pass each stage."""
    return self.n_parts * self.config.n_repeats

  @property
  def n_ticks(self) -> int:
    """Ticks forward, and as many backward."""
    return self.n_items + self.n_stages - 1

  @property
  def turn(self) -> int:
    """The tick in which the last stage begins to work backward."""
    if self.config.schedule == "gpipe":
      return self.n_ticks
    return self.n_stages * self.config.n_repeats - 1

  @property
  def n_waiting(self) -> int:
    """Inputs of a stage that wait for their backward pass, at most."""
    round_trip = self.turn + self.n_stages * self.config.n_repeats
    return min(round_trip, self.n_ticks)

  @property
  def bubble(self) -> float:
    """The share of a stage's ticks in which it has nothing to do."""
    return (self.n_stages - 1) / self.n_ticks

  def forward(self, tick: Int[Array, ""]) -> Work:
    """What each stage does forward; beyond the last tick nothing."""
    stage = jnp.arange(self.n_stages)
    return self._work(tick - stage, stage, backward=False)

  def backward(self, tick: Int[Array, ""]) -> Work:
    """What each stage does backward; before `turn` nothing."""
    stage = jnp.arange(self.n_stages)
    item = tick - self.turn - (self.n_stages - 1 - stage)
    return self._work(item, stage, backward=True)

  def _work(self, item, stage, backward: bool) -> Work:
    n, n_repeats = self.n_stages, self.config.n_repeats
    live = (item >= 0) & (item < self.n_items)
    item = jnp.clip(item, 0, self.n_items - 1)
    group, lap, place = item // (n * n_repeats), item // n % n_repeats, item % n
    repeat = n_repeats - 1 - lap if backward else lap
    entered = group * n * n_repeats + repeat * n + place + stage
    return Work(
      part=group * n + place,
      repeat=repeat,
      live=live,
      slot=entered % self.n_waiting,
      begins=live[0] & jnp.equal(repeat[0], 0),
      ends=live[-1] & jnp.equal(repeat[-1], n_repeats - 1),
    )


@dataclasses.dataclass(frozen=True)
class Program:
  """What is to be computed of one part, cut where the stages begin and end.

  A state is a tree of float arrays. Parameters are of two kinds: `chunk`, those
  of the layers in a stage, and `rest`, all others, which every stage sees.

  Attributes:
    first: (rest, part) -> state.
    stage: (rest, chunk, state, part, number of the chunk) -> state; has no
      gradient by `rest`.
    last: (rest, state, part) -> (loss, what else is summed over parts).
    place: puts the gradients of (layers, rest) where they live.
  """

  first: Callable[[Tree, Tree], Tree]
  stage: Callable[[Tree, Tree, Tree, Tree, Array], Tree]
  last: Callable[[Tree, Tree, Tree], tuple[Array, Tree]]
  place: Callable[[Tree], Tree] = lambda grads: grads


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(
  table: Timetable, program: Program, layers: Tree, rest: Tree, parts: Tree
) -> tuple[Array, Tree]:
  """Sums of the loss and of what else `last` gives, over all parts.

  Only the loss has a gradient; asked for, it is computed on the way.

  Args:
    table: when.
    program: what.
    layers: a tree of [S, N, ...], the chunks of layers.
    rest: all other parameters.
    parts: a tree of [M, ...].
  """
  line = _Line(table, program, layers, rest, parts)

  def tick(carry, t):
    out, total = carry
    work = table.forward(t)
    out = line.through(line.enter(out, work), work)

    def add():
      part = _at(parts, work.part[-1])
      return _add(total, program.last(rest, _of_stage(out, -1), part))

    return (out, jax.lax.cond(work.ends, add, lambda: total)), None

  start = line.nothing(), line.no_sums()
  (_, total), _ = jax.lax.scan(tick, start, jnp.arange(table.n_ticks))
  return total


def _forward(table, program, layers, rest, parts):
  """Forward ticks, then both in one, then backward ones."""
  line = _Line(table, program, layers, rest, parts)
  out = line.nothing()
  waiting = jax.tree.map(
    lambda x: jnp.zeros((x.shape[0], table.n_waiting, *x.shape[1:]), x.dtype),
    out,
  )
  grads = jax.tree.map(jnp.zeros_like, (layers, rest))
  there = out, waiting
  back = out, program.place(grads), line.no_sums()

  def forward(carry, t):
    (out, waiting), back = carry
    work = table.forward(t)
    x = line.enter(out, work)
    waiting = jax.tree.map(
      lambda w, x: w.at[:, t % table.n_waiting].set(x), waiting, x
    )
    return ((line.through(x, work), waiting), back), None

  def backward(carry, t):
    (out, waiting), back = carry
    return ((out, waiting), line.back(waiting, *back, table.backward(t))), None

  def both(carry, t):
    return backward(forward(carry, t)[0], t)

  carry, before = (there, back), 0
  until = table.turn, table.n_ticks, table.turn + table.n_ticks
  for body, end in zip((forward, both, backward), until, strict=True):
    if before < end:
      carry, _ = jax.lax.scan(body, carry, jnp.arange(before, end))
    before = end
  _, grads, total = carry[1]
  return total, grads


def _backward(table, program, grads, cotangents):
  del table, program
  g, _ = cotangents
  layers, rest = jax.tree.map(lambda x: (g * x).astype(x.dtype), grads)
  return layers, rest, None


run.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Line:
  """The stages side by side."""

  table: Timetable
  program: Program
  layers: Tree
  rest: Tree
  parts: Tree

  def nothing(self) -> Tree:
    """States [S, ...] before the first tick."""
    one = jax.eval_shape(self.program.first, self.rest, _at(self.parts, 0))
    zeros = lambda x: jnp.zeros((self.table.n_stages, *x.shape), x.dtype)  # noqa: E731
    return _pin(jax.tree.map(zeros, one))

  def no_sums(self) -> tuple[Array, Tree]:
    """The sums before the first part."""
    state = jax.tree.map(lambda x: x[0], self.nothing())
    sums = jax.eval_shape(
      self.program.last, self.rest, state, _at(self.parts, 0)
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)

  def enter(self, out: Tree, work: Work) -> Tree:
    """Outputs of the tick before -> inputs: each of the stage before it."""
    part = _at(self.parts, work.part[0])
    empty = _empty(out)
    fresh = jax.lax.cond(
      work.begins, lambda: self.program.first(self.rest, part), lambda: empty
    )
    return _put(_roll(out, 1), 0, fresh, work.begins)

  def through(self, x: Tree, work: Work) -> Tree:
    """All stages, each with its chunk, on its part."""
    return self._stages(work)(self._chunks(work), x)

  def back(
    self, waiting: Tree, slope: Tree, grads: Tree, total: Tree, work: Work
  ) -> tuple[Tree, Tree, Tree]:
    """One tick backward.

    Args:
      waiting: inputs [S, W, ...].
      slope: gradients of the inputs of the tick before.
      grads: of (layers, rest), so far.
      total: the sums, so far.
      work: of this tick.

    Returns:
      The new slope, grads and total.
    """
    first, last = self.program.first, self.program.last
    x = _pin(rules.mapped(_at, AXIS)(waiting, work.slot))
    out, pull = jax.vjp(self._stages(work), self._chunks(work), x)
    of_layers, of_rest = grads

    def lose():
      part = _at(self.parts, work.part[-1])
      loss, pull, more = jax.vjp(
        lambda rest, state: last(rest, state, part),
        self.rest, _of_stage(out, -1), has_aux=True,
      )  # fmt: skip
      d_rest, d_state = pull(jnp.ones_like(loss))
      return _add(total, (loss, more)), _add(of_rest, d_rest), d_state

    empty = _empty(out)

    def pass_by():
      return total, of_rest, empty

    total, of_rest, d_state = jax.lax.cond(work.ends, lose, pass_by)
    slope = _put(_roll(slope, -1), -1, d_state, work.ends)
    of_chunks, slope = pull(_where(work.live, slope, 0))
    # Not all gradients are 0 where the slope is: see moe.py, of the biases.
    of_chunks = _where(work.live, of_chunks, 0)
    of_layers = self._collect(of_layers, of_chunks, work)

    def embed():
      part = _at(self.parts, work.part[0])
      _, pull = jax.vjp(lambda rest: first(rest, part), self.rest)
      return _add(of_rest, *pull(_of_stage(slope, 0)))

    of_rest = jax.lax.cond(work.begins, embed, lambda: of_rest)
    return _pin(slope), self.program.place((of_layers, of_rest)), total

  def _stages(self, work: Work) -> Callable[[Tree, Tree], Tree]:
    n, parts = (
      self.table.n_stages,
      jax.tree.map(lambda x: x[work.part], self.parts),
    )
    number = work.repeat * n + jnp.arange(n)
    one = functools.partial(self.program.stage, self.rest)
    stages = rules.mapped(one, AXIS)
    return lambda chunks, x: _pin(stages(chunks, x, _pin(parts), number))

  def _chunks(self, work: Work) -> Tree:
    if self.table.config.n_repeats == 1:
      return jax.tree.map(lambda x: x[:, 0], self.layers)
    return _pin(rules.mapped(_at, AXIS)(self.layers, work.repeat))

  def _collect(self, grads: Tree, of_chunks: Tree, work: Work) -> Tree:
    def add(total, g, repeat):
      return jax.tree.map(lambda t, g: t.at[repeat].add(g), total, g)

    if self.table.config.n_repeats == 1:
      return jax.tree.map(lambda t, g: t + g[:, None], grads, of_chunks)
    return rules.mapped(add, AXIS)(grads, of_chunks, work.repeat)


def _at(tree: Tree, i: Any) -> Tree:
  return jax.tree.map(
    lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False), tree
  )


def _empty(states: Tree) -> Tree:
  """The state of one stage, without anything in it.

  Made outside of a branch: where a mesh axis is manual (`rules.apart`) JAX says
  of what it makes where it lies, and XLA wants both branches to say the same.
  """
  return jax.tree.map(lambda x: jnp.zeros_like(x[0]), states)


def _add(a: Tree, b: Tree) -> Tree:
  return jax.tree.map(jnp.add, a, b)


def _roll(tree: Tree, shift: int) -> Tree:
  return jax.tree.map(lambda x: jnp.roll(x, shift, axis=0), tree)


def _where(chosen: Bool[Array, "S"], tree: Tree, other: Any) -> Tree:
  def pick(x, y):
    return jnp.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

  if not isinstance(other, int):
    return jax.tree.map(pick, tree, other)
  return jax.tree.map(lambda x: pick(x, jnp.asarray(other, x.dtype)), tree)


def _put(tree: Tree, stage: int, one: Tree, wanted: Bool[Array, ""]) -> Tree:
  """Puts the state of one stage in its place, where it is wanted."""
  n = len(jax.tree.leaves(tree)[0])
  chosen = jnp.asarray(np.arange(n) == stage % n) & wanted
  return _pin(_where(chosen, jax.tree.map(lambda x: x[None], one), tree))


def _of_stage(tree: Tree, stage: int) -> Tree:
  """The state of one stage, for all: a sum, as XLA would gather a slice."""
  n = len(jax.tree.leaves(tree)[0])
  chosen = jnp.asarray(np.arange(n) == stage % n)
  return jax.tree.map(lambda x: x.sum(0), _where(chosen, tree, 0))


def _pin(tree: Tree) -> Tree:
  """Splits the first dimension over the stages, and leaves the others be."""
  layout = rules.current()
  if layout is None:
    return tree

  def pin(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return x
    spec = P(AXIS, *[P.UNCONSTRAINED] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)

  return jax.tree.map(pin, tree)
