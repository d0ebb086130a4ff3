"""What every text begins with, trained: prompts and prefixes.

Prompt tuning (arXiv 2104.08691) trains n vectors that are read as if a text
began with them; P-tuning (2103.10385) makes them by a small network. Prefix
tuning (2101.00190), which as P-tuning v2 (2110.07602) goes without its network,
trains keys and values of every layer.

In a causal model what comes before a text does not depend on it: all of these
are keys and values that lie in the cache before anything is read, and texts
begin at position n. So training reads a row as decoding reads a prompt, layer
by layer, one text a row. Extra letter: P tokens of the prefix.

Deviation: P-tuning's network is peft's default, three layers with ReLU, and not
an LSTM.
"""

import dataclasses
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Int

from configs import fields
from configs.ranges import Count
from models import cache as caches
from models import families
from models.cache import Cache, LayerCache
from models.layers import stack
from models.weights import ExtendedArray

NAME = "prefix"  # of its leaves, beside those of the model
Own = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """n vectors before every text."""

  n_tokens: Count = 20
  d_network: Count | None = None  # width of P-tuning's network; None: none

  def __post_init__(self):
    fields.check(self)

  def begin(self, model: families.Config, base: Any, key: Array) -> Own:
    """Its leaves: the vectors as rows of the embedding, drawn by chance."""
    table = base["embed"]["table"]
    keys = jax.random.split(key, 4)
    ids = jax.random.randint(keys[0], (self.n_tokens,), 0, model.vocab_size)
    own = {"rows": table[ids].astype(jnp.float32)}
    if self.d_network is not None:
      width, inner = model.d_model, self.d_network
      sizes = ((width, inner), (inner, inner), (inner, width))
      for i, (shape, of) in enumerate(zip(sizes, keys[1:], strict=True)):
        own |= _linear(i, shape, of)
    return own

  def made(self, model: families.Config, own: Own) -> Own:
    """What the model reads of its leaves: the vectors."""
    del model
    x = own["rows"]
    if self.d_network is not None:
      x = jax.nn.relu(_affine(own, 0, x))
      x = _affine(own, 2, jax.nn.relu(_affine(own, 1, x)))
    return {"rows": x}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
  """Keys and values of every layer before every text."""

  n_tokens: Count = 20
  d_network: Count | None = None  # of the paper's network; None: P-tuning v2

  def __post_init__(self):
    fields.check(self)

  def begin(self, model: families.Config, base: Any, key: Array) -> Own:
    """Its leaves: normal(0, 1) as in peft, of the network or of all layers."""
    del base
    heads, *widths = model.kept
    n_all = model.n_layers * heads * sum(widths)
    keys = jax.random.split(key, 3)
    if self.d_network is None:
      return {"rows": jax.random.normal(keys[0], (self.n_tokens, n_all))}
    own = {"rows": jax.random.normal(keys[0], (self.n_tokens, model.d_model))}
    own |= _linear(0, (model.d_model, self.d_network), keys[1])
    return own | _linear(1, (self.d_network, n_all), keys[2])

  def made(self, model: families.Config, own: Own) -> Own:
    """What the model reads of its leaves: [layers, P, K, H] of either.

    H of keys and of values differ where a model keeps latents: `model.kept`.
    """
    x = own["rows"]
    if self.d_network is not None:
      x = _affine(own, 1, jnp.tanh(_affine(own, 0, x)))
    heads, *widths = model.kept
    n, n_layers = self.n_tokens, model.n_layers
    both = jnp.split(x.reshape(n, n_layers, -1), [heads * widths[0]], -1)
    keys, values = (
      part.reshape(n, n_layers, heads, width).swapaxes(0, 1)
      for part, width in zip(both, widths, strict=True)
    )
    return {"keys": keys, "values": values}


def check(model: families.Config) -> None:
  """Checks that a model can have a prefix.

  Raises:
    ValueError: its layers keep no keys and values of all that was read.
  """
  if not families.is_causal(model) or not {*model.pattern} <= {
    "full",
    "unrotated",
  }:
    raise ValueError(
      f"{families.name(model)} with model.pattern={model.pattern}: a prefix lies "
      "in the keys and values of layers that keep all of them, and of a text "
      "read one way. Take adapter.name=lora."
    )


def length(params: Any) -> int:
  """Tokens of the prefix that lies beside a model's parameters; 0: none."""
  own = params.get(NAME, {})
  if "keys" in own:
    return own["keys"].shape[1]
  return own["rows"].shape[0] if own else 0


def start(
  config: families.Config, params: Any, n_rows: int, n_slots: int
) -> Cache:
  """The cache before anything is read: empty, but for the prefix.

  Args:
    config: unscanned.
    params: of the model, and the prefix beside them.
    n_rows: texts side by side.
    n_slots: for the prefix and all that follows.
  """
  cache, n = caches.empty(config, n_rows, n_slots), length(params)
  if not n:
    return cache
  own = params[NAME]
  if "keys" in own:
    kept = [
      LayerCache(k.swapaxes(0, 1)[None], v.swapaxes(0, 1)[None])
      for k, v in zip(own["keys"], own["values"], strict=True)
    ]
  else:
    kept = _read(config, params, own["rows"], n_rows).layers

  def put(slots, own):
    own = jnp.broadcast_to(
      own[:, :, :n], (n_rows, *own.shape[1:2], n, own.shape[3])
    )
    return slots.at[:, :, :n].set(own.astype(slots.dtype))

  layers = jax.tree.map(put, cache.layers, kept)
  return Cache(layers, cache.lengths + n)


def _read(
  config: families.Config, params: Any, rows: Array, n_rows: int
) -> Cache:
  """Texts that are the vectors alone: the same for all, each where it lives."""
  n = rows.shape[0]
  table = ExtendedArray(params["embed"]["table"], rows)
  params = {**params, "embed": {**params["embed"], "table": table}}
  at = jnp.arange(n, dtype=jnp.int32)[None]
  at = jnp.broadcast_to(at, (n_rows, n))
  _, cache = families.build(config).apply(
    {"params": params},
    config.vocab_size + at,
    at,
    jnp.ones_like(at),
    caches.empty(config, n_rows, n),
  )
  return cache


def apply(
  model: families.Config,
  params: Any,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  segment_ids: Int[Array, "B T"],
  **options: Any,
) -> Any:
  """The model's `apply`, behind the prefix where one lies beside its parameters.

  Behind one, a row is one text.
  """
  n = length(params)
  if not n:
    return families.build(model).apply(
      {"params": params}, tokens, positions, segment_ids, **options
    )
  if model.scanned:
    model = dataclasses.replace(model, scanned=False)
    params = stack.apart(params)
  n_rows, n_tokens = tokens.shape
  cache = start(model, params, n_rows, n + n_tokens)
  is_read = jnp.greater(segment_ids, 0).astype(jnp.int32)
  return families.build(model).apply(
    {"params": params}, tokens, positions + n, is_read, cache, **options
  )


def _linear(i: int, shape: tuple[int, int], key: Array) -> Own:
  """A layer as torch begins it."""
  bound = shape[0] ** -0.5
  keys = jax.random.split(key)
  return {
    f"w{i}": jax.random.uniform(keys[0], shape, jnp.float32, -bound, bound),
    f"b{i}": jax.random.uniform(keys[1], shape[1:], jnp.float32, -bound, bound),
  }


def _affine(own: Own, i: int, x: Array) -> Array:
  return x @ own[f"w{i}"] + own[f"b{i}"][None]
