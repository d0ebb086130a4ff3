"""Causal language modelling: negative log-likelihood of the next token.

The logits of all tokens are never held at once: the cross-entropy goes through
the text in chunks, and each chunk leaves the gradients of its hidden states and
of the head behind, so that nothing is computed twice. z-loss: arXiv 2204.02311.
Label smoothing: 1512.00567.  NEFTune: 2310.05914.  The token after next: 2412.19437, section 2.2.
Extra letters: U tokens of a chunk.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from configs import fields
from configs.ranges import Count, Fraction, NonNegative
from data.batch import Batch
from models import families, prefix
from models.layers.embed import Biased
from models.weights import Weight
from sharding import context, rules
from sharding.rules import constrain

SOWN = ("losses", "figures")  # what layers tell of themselves
_NAMES = ("objective", "loss", "accuracy")
Sums = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is added to the plain likelihood, and how much is held at once."""

  z_loss: NonNegative = 0.0  # weight of log(Z)^2; 1e-4 in PaLM
  label_smoothing: Fraction = 0.0  # of the target, spread over the vocabulary
  # Of the loss of the token after next, with model.ahead; 0.3, then 0.1 in V3.
  ahead_weight: NonNegative = 0.0
  # Largest noise on an embedding, times sqrt(T D); 5 to 15 in 2310.05914.
  neftune_alpha: NonNegative = 0.0
  chunk_tokens: Count = 256  # of each row, whose logits are held at once

  def __post_init__(self):
    fields.check(self)

  @property
  def draws(self) -> bool:
    """Whether a step's key changes what it comes to."""
    return self.neftune_alpha > 0


def make(config: Config, model: families.Config):
  """Builds the objective: (params, batch, key) -> (sum, weight, metrics).

  A key of None evaluates: no dropout, and the next token alone.
  """

  def objective(params: Any, batch: Batch, key: PRNGKeyArray | None):
    looks_ahead = key is not None and config.ahead_weight > 0
    with noise(0.0 if key is None else config.neftune_alpha, key):
      (hidden_BTD, _), sown = prefix.apply(
        model,
        params,
        batch.tokens,
        batch.positions,
        batch.segment_ids,
        **batch.beside,
        deterministic=key is None,
        rngs=None if key is None else {"dropout": key},
        mutable=(*SOWN, "ahead") if looks_ahead else SOWN,
      )
    how, head = families.scoring(model), families.whole_head(model, params)
    loss, sums = cross_entropy(
      config, how, hidden_BTD, head, batch.targets, batch.weights
    )
    weight = batch.weights.sum()
    metrics = {name: (s, weight) for name, s in sums.items()} | figures(sown)
    if looks_ahead:
      (hidden_BTD,) = sown["ahead"]["hidden"]
      targets, weights = one_further(batch)
      further, sums = cross_entropy(
        config, how, hidden_BTD, head, targets, weights
      )
      loss += config.ahead_weight * further
      metrics["ahead_loss"] = (sums["loss"], weights.sum())
    return loss + weight * beside(model, sown), weight, metrics

  return objective


def noise(alpha: float, key: PRNGKeyArray | None):
  """What a decoder reads inside becomes noisy: NEFTune.

  Uniform, at most alpha / sqrt(T D), on what enters the first layer.
  """

  def intercept(method, args, kwargs, context):
    x = method(*args, **kwargs)
    if context.method_name != "enter":
      return x
    most = alpha / math.sqrt(x.shape[1] * x.shape[2])
    drawn = jax.random.uniform(
      jax.random.fold_in(key, 2), x.shape, minval=-most, maxval=most
    )
    return x + drawn.astype(x.dtype)

  return nn.intercept_methods(intercept) if alpha else contextlib.nullcontext()


def one_further(
  batch: Batch,
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
  """Targets and weights of the token after next: those of the place behind.

  The last place of a segment has none, and weighs nothing.
  """
  segments, behind = batch.segment_ids, context.following
  is_last = jnp.not_equal(segments, behind(segments))
  return behind(batch.targets), jnp.where(is_last, 0.0, behind(batch.weights))


def beside(model: families.Config, sown: Any) -> Array | float:
  """What the layers' own losses add to that of a token: their mean."""
  extra = sum(x.sum() for x in jax.tree.leaves(sown.get("losses", {})))
  return extra / model.n_layers


def figures(sown: Any) -> dict[str, tuple[Array, Array]]:
  """What the layers tell of themselves, added up: name -> (sum, weight)."""
  found: dict[str, Any] = {}
  is_pair = lambda x: isinstance(x, tuple) and len(x) == 2  # noqa: E731
  for path, pair in jax.tree.leaves_with_path(
    sown.get("figures", {}), is_leaf=is_pair
  ):
    name = path[-2].key
    pair = tuple(x.sum() for x in pair)
    before = found.get(name, (0.0, 0.0))
    found[name] = (before[0] + pair[0], before[1] + pair[1])
  return found


def row_sums(
  config: Config,
  how: families.Scoring,
  hidden: Float[Array, "B T D"],
  head: Weight | Biased,
  targets: Int[Array, "B T"],
  weights: Float[Array, "B T"],
) -> dict[str, Float[Array, "B"]]:
  """The loss and the hits of every row by itself, to measure and not to learn.

  Memory is that of `cross_entropy`.
  """

  def on_shard(rows, head):
    def add(total, chunk):
      hidden_BUD, targets_BU, weights_BU = chunk
      logits = families.score(how, hidden_BUD, head)
      log_z, at_target, best = _scores(logits, targets_BU)
      found = {
        "loss": (log_z - at_target) * weights_BU,
        "accuracy": best * weights_BU,
      }
      return jax.tree.map(lambda t, x: t + x.sum(1), total, found), None

    start = dict.fromkeys(_NAMES[1:], 0 * rows[2].sum(1))
    sums, _ = jax.lax.scan(add, start, _chunks(config, *rows))
    return jax.tree.map(lambda x: x[:, None], sums)

  rows, layout = (hidden, targets, weights), rules.current()
  if layout is None:
    sums = on_shard(rows, head)
  else:
    sums = rules.on_rows(on_shard, rows, head, out_specs=layout.rows)
  return jax.tree.map(lambda x: x.sum(1), sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def cross_entropy(
  config: Config,
  how: families.Scoring,
  hidden: Float[Array, "B T D"],
  head: Weight | Biased,
  targets: Int[Array, "B T"],
  weights: Float[Array, "B T"],
) -> tuple[Float[Array, ""], Sums]:
  """Weighted sum of the loss over all tokens, and the sums to report.

  Memory: B * chunk_tokens * V logits, whatever the length. Only the loss has a
  gradient; with it, the backward pass costs two matrix products and no second
  forward pass.
  """

  def on_shard(rows, head):
    def add(total, chunk):
      hidden_BUD, targets_BU, weights_BU = chunk
      logits = families.score(how, hidden_BUD, head)
      sums, _ = _chunk(config, logits, targets_BU, weights_BU)
      return jax.tree.map(jnp.add, total, sums), None

    sums, _ = jax.lax.scan(add, _zeros(rows), _chunks(config, *rows))
    return (), jax.tree.map(lambda x: x[None], sums)

  _, sums = _over_shards(on_shard, (hidden, targets, weights), head)
  sums = {name: x.sum(0) for name, x in sums.items()}
  return sums.pop("objective"), sums


def _forward(config, how, hidden, head, targets, weights):
  """Each shard adds up its own gradient of the head: the shards add up theirs
  once, not once a chunk. Of a frozen head, or of what is frozen of it, there is
  none.
  """
  asked = jax.tree.map(lambda x: x.perturbed, head)
  hidden, head, targets, weights = jax.tree.map(
    lambda x: x.value, (hidden, head, targets, weights)
  )

  def on_shard(rows, head):
    trained, rest = _parted(asked, head)

    def score(hidden, trained):
      return families.score(how, hidden, _whole(trained, rest))

    def add(carry, chunk):
      total, grad_head = carry
      hidden_BUD, targets_BU, weights_BU = chunk
      logits, pull = jax.vjp(score, hidden_BUD, trained)
      sums, grad_logits = _chunk(config, logits, targets_BU, weights_BU)
      grad_hidden, grad = pull(grad_logits)
      grad_head = jax.tree.map(jnp.add, grad_head, grad)
      return (jax.tree.map(jnp.add, total, sums), grad_head), grad_hidden

    zeros = jax.tree.map(lambda w: jnp.zeros_like(w, jnp.float32), trained)
    start = _zeros(rows), zeros
    (sums, grad_head), grad_hidden = jax.lax.scan(
      add, start, _chunks(config, *rows)
    )
    grad_head = jax.tree.map(lambda g, w: g.astype(w.dtype), grad_head, trained)
    n_rows, length, width = rows[0].shape
    grad_hidden = jnp.moveaxis(grad_hidden, 0, 1).reshape(n_rows, -1, width)
    stacked = jax.tree.map(lambda x: x[None], (sums, grad_head))
    return grad_hidden[:, :length], stacked

  rows = hidden, targets, weights
  grad_hidden, stacked = _over_shards(on_shard, rows, head)
  sums, grad_head = stacked
  sums = {name: x.sum(0) for name, x in sums.items()}
  grad_head = _added_up(head, grad_head)
  # First the head's sum over devices, whose parts then make room for the layers.
  saved = jax.lax.optimization_barrier((grad_hidden, grad_head))
  return (sums.pop("objective"), sums), saved


def _backward(config, how, saved, cotangents):
  g, _ = cotangents  # of the loss; what is only reported has none
  grads = jax.tree.map(lambda x: (g * x).astype(x.dtype), saved)
  return *grads, None, None


# Told which arguments have a gradient at all.
cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _parted(asked: Any, tree: Any) -> tuple[Any, Any]:
  """The leaves that are asked for and the others, None in place of each."""
  part = jax.tree.map(lambda one, x: x if one else None, asked, tree)
  rest = jax.tree.map(lambda one, x: None if one else x, asked, tree)
  return part, rest


def _whole(part: Any, rest: Any) -> Any:
  return jax.tree.map(
    lambda x, y: y if x is None else x, part, rest, is_leaf=lambda x: x is None
  )


def _added_up(head: Weight | Biased, parts: Any) -> Any:
  """The head's gradient, of what the shards have of it, if anything."""
  if parts is None:
    return None
  if isinstance(head, Biased):
    table = _added_up(head.table, parts.table)
    return Biased(table, rules.added_up(parts.bias, "vocab"))
  if isinstance(head, Array):
    return rules.added_up(parts, "vocab", "embed")
  return jax.tree.map(lambda x: x.sum(0), parts)


def _over_shards(on_shard: Callable, rows: Any, head: Weight | Biased) -> Any:
  """Runs on_shard(rows, head) -> (like rows, sums) on every shard's tokens.

  The sums are laid side by side.
  """
  layout = rules.current()
  if layout is None:
    return on_shard(rows, head)
  places = layout.rows, P(layout.token_axes)
  return rules.on_rows(on_shard, rows, head, out_specs=places)


def _zeros(rows: Any) -> Sums:
  """Sums to begin with, which vary over shards as the rows do."""
  return {name: 0 * rows[2].sum() for name in _NAMES}


def _chunks(config: Config, *arrays: Array) -> tuple[Array, ...]:
  """[B, T, ...] -> [T / U, B, U, ...]; the end is padded with weight 0."""
  length = arrays[0].shape[1]
  size = min(config.chunk_tokens, length)

  def split(x):
    pad = [(0, 0)] * x.ndim
    pad[1] = (0, -length % size)
    x = jnp.pad(x, pad).reshape(x.shape[0], -1, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  return tuple(split(x) for x in arrays)


def _chunk(
  config: Config,
  logits: Float[Array, "B U V"],
  targets: Int[Array, "B U"],
  weights: Float[Array, "B U"],
) -> tuple[Sums, Float[Array, "B U V"]]:
  """Sums over a chunk, and the gradient of its objective by the logits."""
  logits = constrain(logits, None, None, "act_vocab")
  smooth = config.label_smoothing
  log_z, at_target, best = _scores(logits, targets)
  nll = log_z - at_target
  loss = nll + config.z_loss * jnp.square(log_z)
  if smooth:
    loss += smooth * (at_target - logits.mean(-1))
  sums = {
    "objective": (loss * weights).sum(),
    "loss": (nll * weights).sum(),
    "accuracy": (best * weights).sum(),
  }
  slope = (1 + 2 * config.z_loss * log_z) * weights
  grad = jnp.exp(logits - log_z[..., None]) * slope[..., None]
  ids = jnp.arange(logits.shape[-1])[None, None]
  grad -= jnp.where(
    ids == targets[..., None], (1 - smooth) * weights[..., None], 0.0
  )
  if smooth:
    grad -= smooth / logits.shape[-1] * weights[..., None]
  return sums, grad


def _scores(
  logits: Float[Array, "B U V"], targets: Int[Array, "B U"]
) -> tuple[Float[Array, "B U"], Float[Array, "B U"], Bool[Array, "B U"]]:
  """Of every token: log Z, the target's logit, whether that is the highest."""
  log_z = jax.nn.logsumexp(logits, axis=-1)
  ids = jnp.arange(logits.shape[-1])[None, None]
  target = targets[..., None]
  at_target = jnp.take_along_axis(logits, target, -1, mode="clip")[..., 0]
  # logits.argmax(-1) == targets, which takes four times as long on a CPU.
  top = logits.max(-1, keepdims=True)
  sooner = (jnp.equal(logits, top) & (ids < target)).any(-1)
  best = jnp.equal(at_target, top[..., 0]) & ~sooner
  return log_z, at_target, best
