"""Decoding as pure functions: training, evaluation and serving use the same.

`prefill` reads a chunk of text into the cache, `step` one token of each row;
`begin` and `advance` also draw the next token. `generate` runs to the end in
one compiled loop, `stream` hands out tokens as they come. For a number of rows
both compile once per bucket: prompts and slots are rounded up to powers of two.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from models import families, prefix, sampling
from models.blockwise import BlockArray
from models.cache import Cache
from models.families import Config, Params
from models.layers import stack
from sharding import rules

SMALLEST_BUCKET = 16  # tokens
# Padded tokens of another text, and where they are real.
Text = tuple[Int[Array, "B S"], Bool[Array, "B S"]]


def unrolled(config: Config, params: Params) -> tuple[Config, Params]:
  """The same model layer by layer and cast for once, as decoding wants it.

  A scan rewrites the whole stacked cache at every token: 1.7 times slower. What
  `einsum` would cast at every token is cast here: all but the vectors.
  """
  if not config.scanned:
    return config, params
  # Without what predicts the token after next, in training.
  params = {name: part for name, part in params.items() if name != "ahead"}
  params = stack.apart(params)

  def cast(leaf: Array | BlockArray) -> Array | BlockArray:
    if isinstance(leaf, BlockArray):  # its scales stay what they are
      return leaf
    floating = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 1
    return leaf.astype(config.dtype) if floating else leaf

  cast_all = jax.tree.map(
    cast, params, is_leaf=lambda x: isinstance(x, BlockArray)
  )
  return dataclasses.replace(config, scanned=False), cast_all


def prefill(
  config: Config,
  params: Params,
  tokens: Int[Array, "B T"],
  real: Bool[Array, "B T"],
  cache: Cache,
  source: Text | None = None,
  *,
  prefixed: bool = False,
) -> tuple[Float[Array, "B V"], Cache]:
  """Reads T tokens behind what the cache holds.

  Args:
    config: unscanned.
    params: unstacked; see `unrolled`.
    tokens: of a whole prompt, or of the next chunk of it.
    real: False where a token is padding, on either side.
    cache: has slots for all that the rows will ever read.
    source: another text, of families that read one; with the first tokens
      only, as the cache keeps it.
    prefixed: whether these tokens all see each other.

  Returns:
    the logits after the last real token of each row (of a row without any,
    nothing that means anything), and the cache.
  """
  beside: dict[str, Any] = {}
  if source is not None:
    beside["source"] = source[0], *_places(source[1], 0)
  positions, segments = _places(real, cache.lengths[:, None])
  if prefixed:
    ends = positions.max(1, keepdims=True) + 1
    beside["prefix"] = jnp.broadcast_to(ends, positions.shape)
  with rules.whole_rows():
    hidden_BTD, cache = families.build(config).apply(
      {"params": params}, tokens, positions, segments, cache, **beside
    )
  last_B = real.shape[1] - 1 - real[:, ::-1].argmax(1)
  last_B1D = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)
  return families.logits(config, params, last_B1D)[:, 0], cache


def _places(real: Bool[Array, "B T"], start: Any) -> tuple[Array, Array]:
  """Positions, counted from `start`, and segments of padded rows."""
  positions = start + jnp.cumsum(real, axis=1) - 1
  return jnp.maximum(positions, 0), real.astype(jnp.int32)


def step(
  config: Config, params: Params, token: Int[Array, "B"], cache: Cache
) -> tuple[Float[Array, "B V"], Cache]:
  """Reads one token of every row."""
  real = jnp.ones((token.shape[0], 1), bool)
  return prefill(config, params, token[:, None], real, cache)


@flax.struct.dataclass
class State:
  """Where the texts stand: `token` is drawn, and not yet in the cache."""

  token: Int[Array, "B"]
  ended: Bool[Array, "B"]
  cache: Cache
  seen: Bool[Array, "B V"] | None  # only where a penalty asks for it


@flax.struct.dataclass
class Policy:
  """How texts go on and where they end."""

  law: sampling.Law
  keys: Key[Array, "B"]
  end_ids: Int[Array, "E"]  # a row ends with any of these


def begin(
  config: Config,
  params: Params,
  policy: Policy,
  tokens: Int[Array, "B T"],
  real: Bool[Array, "B T"],
  n_slots: int,
  source: Text | None = None,
  prefixed: bool = False,
) -> State:
  """Reads the prompts into a new cache and draws the first token of each."""
  cache = prefix.start(config, params, tokens.shape[0], n_slots)
  logits, cache = prefill(
    config, params, tokens, real, cache, source, prefixed=prefixed
  )
  seen = None
  if policy.law.repetition_penalty is not None:
    seen = jax.vmap(_mark)(jnp.zeros(logits.shape, bool), tokens, real)
  return _draw(policy, logits, cache, seen)


def advance(
  config: Config, params: Params, policy: Policy, state: State
) -> State:
  """Reads the token of each row and draws the next."""
  logits, cache = step(config, params, state.token, state.cache)
  drawn = _draw(policy, logits, cache, state.seen)
  return drawn.replace(ended=state.ended | drawn.ended)


def _draw(
  policy: Policy,
  logits: Float[Array, "B V"],
  cache: Cache,
  seen: Bool[Array, "B V"] | None,
) -> State:
  token = sampling.sample(policy.law, logits, seen, policy.keys, cache.lengths)
  token = token.astype(jnp.int32)
  if seen is not None:
    seen = jax.vmap(_mark)(seen, token, jnp.ones(token.shape, bool))
  ended = jnp.equal(token[:, None], policy.end_ids[None]).any(1)
  return State(token, ended, cache, seen)


def _mark(seen_V: Array, tokens: Array, real: Array) -> Array:
  return seen_V.at[tokens].max(real)


_begin = jax.jit(begin, static_argnums=(0, 5, 7))
_advance = jax.jit(advance, static_argnums=0, donate_argnames="state")


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnames="state")
def _finish(
  config: Config,
  params: Params,
  policy: Policy,
  state: State,
  n_new: Int[Array, ""],
  n_buffer: int,
) -> tuple[Int[Array, "B N"], Int[Array, "B"], State]:
  """Runs until every row has ended or has n_new tokens.

  The last state is only returned so that the first one can lend its memory.
  """
  n_rows = state.token.shape[0]
  texts = jnp.zeros((n_rows, n_buffer), jnp.int32).at[:, 0].set(state.token)

  def unfinished(carry):
    state, _, _, n_drawn = carry
    return (n_drawn < n_new) & ~state.ended.all()

  def body(carry):
    state, texts, lengths, n_drawn = carry
    lengths += ~state.ended
    state = advance(config, params, policy, state)
    texts = jax.lax.dynamic_update_slice(
      texts, state.token[:, None], (0, n_drawn)
    )
    return state, texts, lengths, n_drawn + 1

  carry = (state, texts, jnp.ones(n_rows, jnp.int32), jnp.int32(1))
  state, texts, lengths, _ = jax.lax.while_loop(unfinished, body, carry)
  return texts, lengths, state


def bucket(n: int) -> int:
  """The size that n is rounded up to, so that few sizes are compiled."""
  return max(SMALLEST_BUCKET, 1 << (n - 1).bit_length())


def pad(
  prompts: Sequence[Sequence[int]], size: int
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
  """Tokens padded on the right to `size`, and where they are real."""
  tokens = np.zeros((len(prompts), size), np.int32)
  for row, prompt in zip(tokens, prompts, strict=True):
    row[: len(prompt)] = prompt
  lengths = np.array([len(prompt) for prompt in prompts])
  return tokens, np.arange(size)[None] < lengths[:, None]


def check(
  config: Config, prompts: Sequence[Sequence[int]], max_tokens: int
) -> None:
  """Checks that the model can read the prompts and what follows them.

  Raises:
    ValueError: an empty prompt, one that is too long, or an unknown id.
  """
  for i, prompt in enumerate(prompts):
    if not prompt:
      raise ValueError(
        f"prompt {i} has no tokens: begin it with the tokenizer's bos_id."
      )
    if len(prompt) + max_tokens > config.max_length:
      raise ValueError(
        f"prompt {i} has {len(prompt)} tokens, and with max_tokens={max_tokens} "
        f"the text may exceed the model's max_length={config.max_length}: "
        "shorten the prompt or lower max_tokens."
      )
    low, high = min(prompt), max(prompt)
    if low < 0 or high >= config.vocab_size:
      raise ValueError(
        f"prompt {i} has the id {low if low < 0 else high}, outside the "
        f"vocab_size={config.vocab_size}: it was made by another tokenizer."
      )


def check_sources(
  config: Config,
  prompts: Sequence[Sequence[int]],
  sources: Sequence[Sequence[int]] | None,
) -> None:
  """Checks that a family that reads two texts gets them, and no other one.

  Raises:
    ValueError: there are none, or as many as there should not be, or `check`.
  """
  family = families.name(config)
  if not families.reads(config, "source"):
    if sources is not None:
      raise ValueError(
        f"the family {family} reads no source: put the text into the prompt."
      )
    return
  if sources is None or len(sources) != len(prompts):
    n = "none" if sources is None else len(sources)
    raise ValueError(
      f"the family {family} writes about a source, and there are {n} for "
      f"{len(prompts)} prompts: give one for each."
    )
  check(config, sources, 0)


def _start(
  config: Config,
  params: Params,
  prompts: Sequence[Sequence[int]],
  settings: sampling.Config,
  end_ids: Sequence[int],
  keys: Key[Array, "B"] | None,
  sources: Sequence[Sequence[int]] | None,
  prefixed: bool,
) -> tuple[Policy, State]:
  n_prefix = prefix.length(params)
  check(config, prompts, settings.max_tokens + n_prefix)
  check_sources(config, prompts, sources)
  source = sources and pad(sources, bucket(max(map(len, sources))))
  n_rows, longest = len(prompts), max(map(len, prompts))
  if keys is None:
    keys = sampling.keys(settings.seed, n_rows)
  policy = Policy(
    sampling.law(settings, n_rows), keys, jnp.asarray(end_ids, jnp.int32)
  )
  tokens, real = pad(prompts, bucket(longest))
  n_slots = bucket(n_prefix + longest + settings.max_tokens)
  state = _begin(
    config, params, policy, tokens, real, n_slots, source, prefixed
  )
  return policy, state


def generate(
  config: Config,
  params: Params,
  prompts: Sequence[Sequence[int]],
  settings: sampling.Config,
  end_ids: Sequence[int] = (),
  keys: Key[Array, "B"] | None = None,
  sources: Sequence[Sequence[int]] | None = None,
  *,
  prefixed: bool = False,
) -> list[list[int]]:
  """Continues every prompt, on the device until all have ended.

  Args:
    config: of a model family.
    params: of that model.
    prompts: token ids, one or more each.
    settings: max_tokens, temperature and so on; stop strings are not looked at.
    end_ids: tokens that end a text; the one that did is its last.
    keys: one per prompt, in place of the seed's.
    sources: token ids of the text that each is about, for families that read
      two; the prompt is what the other text begins with: [config.start_id].
    prefixed: whether the tokens of a prompt all see each other.

  Raises:
    ValueError: as `check` and `check_sources`.
  """
  config, params = unrolled(config, params)
  policy, state = _start(
    config, params, prompts, settings, end_ids, keys, sources, prefixed
  )
  n_buffer = bucket(settings.max_tokens)
  texts, lengths, _ = _finish(
    config, params, policy, state, settings.max_tokens, n_buffer
  )
  texts, lengths = jax.device_get((texts, lengths))
  return [t[:n].tolist() for t, n in zip(texts, lengths, strict=True)]


def stream(
  config: Config,
  params: Params,
  prompts: Sequence[Sequence[int]],
  settings: sampling.Config,
  end_ids: Sequence[int] = (),
  keys: Key[Array, "B"] | None = None,
  sources: Sequence[Sequence[int]] | None = None,
  *,
  prefixed: bool = False,
) -> Iterator[list[int | None]]:
  """As `generate`, one token of every row at a time; None: it has ended.

  The device works on the next token while this one is read.
  """
  config, params = unrolled(config, params)
  policy, state = _start(
    config, params, prompts, settings, end_ids, keys, sources, prefixed
  )
  alive = np.ones(len(prompts), bool)
  for n_drawn in range(1, settings.max_tokens + 1):
    token, ended = jnp.copy(state.token), jnp.copy(state.ended)
    if n_drawn < settings.max_tokens:
      state = _advance(config, params, policy, state)
    token, ended = jax.device_get((token, ended))
    yield [int(t) if a else None for t, a in zip(token, alive, strict=True)]
    alive = ~ended
    if not alive.any():
      return
