"""Judges a step before it is applied: all finite, and no spike.

A step is bad where its loss, a gradient, a parameter or a weight of the batch
is not finite, or where loss or gradient norm stand too far above the good steps
before it: more than `spike_sigmas` robust deviations (1.4826 MAD) over their
median. A bad step changes nothing: parameters, optimizer and averages stay as
they were, to the bit. After `max_bad_in_row` of them the run goes back to its
last checkpoint and on with other data, as PaLM's did (2204.02311, section 5.1).

The judgement runs on the devices, within the step. The host reads it one step
late, so that the devices never wait for it.
"""

import dataclasses
import json
import typing
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import numpy as np
from etils import epath
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from configs import fields
from configs.ranges import Count, NonNegative
from data.batch import Batch

WINDOW = 128  # good steps that a new one is compared with
N_FIRST = 32  # good steps before any can be a spike
# Deviations are at least this: 1 % of the median loss, 10 % of the gradient
# norm. A run on one repeated batch has almost none.
_LEAST_LOSS, _LEAST_GRAD = 0.01, 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is a spike, and when it is time to go back."""

  # Robust deviations over the median; 0: no loss is too high. 10 calls at most
  # one of 10,000 harmless steps bad where the noise is heavy-tailed (Student's
  # t of 6 degrees).
  spike_sigmas: NonNegative = 10.0
  max_bad_in_row: Count = 4  # then the run goes back to its last checkpoint
  max_rollbacks: Count = 4  # then it stops: it would only go round in circles

  def __post_init__(self):
    fields.check(self)


# Unchecked: as a pytree it also carries shardings and shapes.
@typing.no_type_check
@flax.struct.dataclass
class History:
  """The last good steps; part of the training state."""

  losses: Float[Array, "window"]
  log_grad_norms: Float[Array, "window"]
  n_good: Int[Array, ""]


@typing.no_type_check
@flax.struct.dataclass
class Verdict:
  """Why a step was applied, or why not. Leaves in the order of the tree."""

  is_good: Bool[Array, ""]
  loss: Float[Array, ""]
  loss_limit: Float[Array, ""]
  grad_norm: Float[Array, ""]
  grad_limit: Float[Array, ""]
  finite_weights: Bool[Array, ""]  # of the batch
  finite_params: Bool[Array, "leaves"]
  finite_grads: Bool[Array, "leaves"]


def start() -> History:
  """The history before the first step."""
  nothing = jnp.zeros(WINDOW, jnp.float32)
  return History(nothing, nothing, jnp.zeros((), jnp.int32))


def judge(
  config: Config,
  history: History,
  *,
  loss: Float[Array, ""],
  grad_norm: Float[Array, ""],
  params: Any,
  grads: Any,
  batch: Batch,
  overflows: bool = False,
) -> tuple[Verdict, History]:
  """The verdict on a step, and the history with it.

  Args:
    config: what is a spike.
    history: of the steps before.
    loss: mean loss of the batch.
    grad_norm: global norm of the gradients.
    params: before the step.
    grads: of the step.
    batch: what they come from.
    overflows: gradients overflow now and then, and the loss scaling deals with
      it (fp16).
  """
  loss_limit = _limit(config, history.losses, history.n_good, _LEAST_LOSS)
  grad_limit = jnp.exp(
    _limit(config, history.log_grad_norms, history.n_good, _LEAST_GRAD, 1.0)
  )
  finite_weights = jnp.isfinite(batch.weights).all()
  finite_params, finite_grads = _finite(params), _finite(grads)
  is_good = finite_weights & finite_params.all()
  is_good &= jnp.isfinite(loss) & (loss <= loss_limit)
  if not overflows:
    is_good &= finite_grads.all() & jnp.isfinite(grad_norm)
    is_good &= grad_norm <= grad_limit
  verdict = Verdict(
    is_good=is_good,
    loss=loss,
    loss_limit=loss_limit,
    grad_norm=grad_norm,
    grad_limit=grad_limit,
    finite_weights=finite_weights,
    finite_params=finite_params,
    finite_grads=finite_grads,
  )
  # What overflowed is no measure of what is usual.
  counts = is_good & jnp.isfinite(grad_norm)
  place = history.n_good % WINDOW

  def keep(values, value):
    return jnp.where(counts, values.at[place].set(value), values)

  return verdict, History(
    keep(history.losses, loss),
    keep(history.log_grad_norms, jnp.log(jnp.maximum(grad_norm, 1e-30))),
    history.n_good + counts,
  )


def _limit(
  config: Config,
  values_W: Float[Array, "window"],
  n_good: Int[Array, ""],
  least: float,
  unit: float | None = None,
) -> Float[Array, ""]:
  """Median plus so many deviations; infinite while too little is known."""
  if not config.spike_sigmas:
    return jnp.asarray(jnp.inf, jnp.float32)
  known_W = jnp.where(jnp.arange(WINDOW) < n_good, values_W, jnp.nan)
  median = jnp.nanmedian(known_W)
  deviation = 1.4826 * jnp.nanmedian(jnp.abs(known_W - median))
  floor = least * (jnp.abs(median) if unit is None else unit)
  limit = median + config.spike_sigmas * jnp.maximum(deviation, floor)
  return jnp.where(n_good < N_FIRST, jnp.inf, limit)


def _finite(tree: Any) -> Bool[Array, "leaves"]:
  return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)])


class Watch:
  """Reads the verdicts, tells of the bad ones, and knows when to go back.

  Args:
    config: when to go back.
    params: the tree whose leaves the verdicts speak of.
    workdir: of the run; a bad step leaves workdir/bad/STEP.PROCESS.json and
      .npz, its documents and its batch.
    say: takes a line for the person who watches.
  """

  def __init__(
    self,
    config: Config,
    params: Any,
    workdir: epath.Path,
    say: Callable[[str], None],
  ):
    self._config = config
    self._names = [
      jax.tree_util.keystr(path, simple=True, separator="/")
      for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    self._folder, self._say = workdir / "bad", say
    self.begin(0)

  def begin(self, n_in_row: int) -> None:
    """Begins a life, or anew after the run went back.

    Args:
      n_in_row: the last steps before, that were bad.
    """
    self._unread: tuple | None = None
    self.n_in_row = n_in_row
    self.why = ""  # the last bad step was bad
    self._is_damaged = False  # the parameters: no other batch can mend them

  def add(
    self,
    step: int,
    verdict: Verdict,
    batch: Batch,
    documents: Callable[[], Any],
  ) -> None:
    """Takes a step's verdict, to be read later.

    Args:
      step: its number, from 1.
      verdict: still on the devices.
      batch: the rows of this host.
      documents: names the documents of these rows, as plain data.
    """
    self._unread = (step, verdict, batch, documents)

  def read(self) -> int:
    """Reads the verdict that is left, once its step is done.

    Returns:
      1 if it was bad, else 0.
    """
    if self._unread is None:
      return 0
    step, verdict, batch, documents = self._unread
    self._unread = None
    if bool(verdict.is_good):
      self.n_in_row = 0
      return 0
    self.n_in_row += 1
    verdict = jax.device_get(verdict)
    self._is_damaged = not verdict.finite_params.all()
    self.why = reason(verdict, self._names)
    try:
      place = self._write(step, verdict, batch, documents())
      where = f"{place}.json and .npz have its documents and its batch"
    except OSError as error:  # a run does not end for its log
      where = f"its batch cannot be written: {error}"
    self._say(f"step {step} is not applied: {self.why}; {where}")
    return 1

  @property
  def must_go_back(self) -> bool:
    """Whether the last steps were bad too often, or the parameters are."""
    return self._is_damaged or self.n_in_row >= self._config.max_bad_in_row

  def _write(
    self, step: int, verdict: Verdict, batch: Batch, documents: Any
  ) -> epath.Path:
    self._folder.mkdir(parents=True, exist_ok=True)
    place = self._folder / f"{step}.{jax.process_index()}"
    found = {
      "step": step,
      "why": self.why,
      "loss": float(verdict.loss),
      "loss_limit": float(verdict.loss_limit),
      "grad_norm": float(verdict.grad_norm),
      "grad_limit": float(verdict.grad_limit),
      "bad_params": _named(self._names, verdict.finite_params),
      "bad_grads": _named(self._names, verdict.finite_grads),
      "documents": documents,
    }
    (place.parent / f"{place.name}.json").write_text(
      json.dumps(found, indent=1)
    )
    arrays = {
      jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x)
      for path, x in jax.tree.leaves_with_path(batch)
    }
    with (place.parent / f"{place.name}.npz").open("wb") as file:
      np.savez_compressed(file, **arrays)
    return place


def reason(verdict: Verdict, names: list[str]) -> str:
  """The first cause of a bad step, in words: what comes first spoils the rest.

  Args:
    verdict: on the host.
    names: of the leaves.
  """
  if not verdict.finite_weights:
    return "a weight of the batch is not finite"
  if bad := _named(names, verdict.finite_params):
    return f"parameter {_list(bad)} is not finite"
  if bad := _named(names, verdict.finite_grads):
    loss = float(verdict.loss)
    return f"the gradient of {_list(bad)} is not finite (loss {loss:.4g})"
  for name in ("loss", "grad"):
    value = float(verdict.loss if name == "loss" else verdict.grad_norm)
    limit = float(getattr(verdict, f"{name}_limit"))
    label = {"loss": "loss", "grad": "gradient norm"}[name]
    if not np.isfinite(value):
      return f"{label} is {value}"
    if value > limit:
      return f"{label} {value:.4g} is a spike, over {limit:.4g}"
  raise AssertionError("a good step has no reason to be bad")


def _named(names: list[str], finite: np.ndarray) -> list[str]:
  return [n for n, ok in zip(names, finite, strict=True) if not ok]


def _list(names: list[str]) -> str:
  more = f" and {len(names) - 1} more" if len(names) > 1 else ""
  return names[0] + more
