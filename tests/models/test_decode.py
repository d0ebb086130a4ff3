"""Reading from a cache equals reading the whole text, however it is laid out."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from models import cache as caches
from models import decode, families, gpt, llama, sampling
from models.layers import position

_LLAMA = llama.Config(
  vocab_size=64,
  d_model=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  d_head=8,
  d_ff=32,
  max_length=64,
  dtype="float32",
)
_SCALING = position.Scaling(kind="llama3", factor=8.0, original_length=16)
CONFIGS = {
  "llama": _LLAMA,
  "mistral": dataclasses.replace(_LLAMA, pattern=("sliding",), window=6),
  "mixed": dataclasses.replace(_LLAMA, pattern=("sliding", "full"), window=6),
  "qwen2": dataclasses.replace(_LLAMA, qkv_biased=True, tied=True),
  "qwen3": dataclasses.replace(_LLAMA, qk_normed=True),
  "llama3": dataclasses.replace(_LLAMA, rope_scaling=_SCALING),
  "gpt": gpt.Config(
    vocab_size=64,
    max_length=64,
    d_model=16,
    n_layers=2,
    n_heads=4,
    d_ff=32,
    dtype="float32",
  ),
}
GREEDY = sampling.Config(temperature=0.0, max_tokens=8)
PROMPTS = [[5], [7, 8, 9, 10, 11], [int(i) for i in range(20, 38)]]


@functools.cache
def model(name: str):
  """An unrolled model whose weights are large enough to tell tokens apart."""
  config = dataclasses.replace(CONFIGS[name], scanned=False)
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    is_scale = path[-1].key == "scale"
    return jnp.float32(rng.normal(float(is_scale), 0.3, leaf.shape))

  shapes = families.abstract(config)
  return config, jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def compiled(name: str):
  """Compiles a whole reading without a cache, prefill, and step."""
  config, _ = model(name)

  def read(params, tokens, real):
    positions = jnp.arange(tokens.shape[1])[None]
    hidden, _ = families.build(config).apply(
      {"params": params},
      tokens,
      jnp.broadcast_to(positions, tokens.shape),
      real.astype(jnp.int32),
    )
    return families.logits(config, params, hidden)

  return (
    jax.jit(read),
    jax.jit(functools.partial(decode.prefill, config)),
    jax.jit(functools.partial(decode.step, config)),
  )


def padded(texts, size: int, side: str):
  tokens, real = decode.pad(texts, size)
  if side == "left":
    shifts = size - real.sum(1)
    tokens, real = (
      np.stack([np.roll(row, n) for row, n in zip(x, shifts, strict=True)])
      for x in (tokens, real)
    )
  return tokens, real


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_cached_logits_are_those_of_the_whole_text(name, side):
  # I1 and I2: every step of ragged prompts, far beyond a window of 6.
  config, params = model(name)
  read, prefill, step = compiled(name)
  n_new = 10
  rng = np.random.default_rng(0)
  texts = [p + rng.integers(0, 64, n_new).tolist() for p in PROMPTS]
  want = np.asarray(read(params, *decode.pad(texts, 32)))
  tokens, real = padded(PROMPTS, 24, side)
  cache = caches.empty(config, len(PROMPTS), 32)
  logits, cache = prefill(params, tokens, real, cache)
  for i in range(n_new):
    at = [len(p) + i for p in PROMPTS]
    expected = want[range(len(at)), np.subtract(at, 1)]
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    token = jnp.asarray([t[n] for t, n in zip(texts, at, strict=True)])
    logits, cache = step(params, token, cache)
