"""What begins a text, put there as keys and values, is what was read."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import cache as caches
from models import families, prefix

N, LENGTH = 4, 12


@pytest.fixture(
  params=[
    "llama",
    "gpt2",
    "deepseek_v3",
    pytest.param("deepseek_v2_lite", marks=pytest.mark.slow),
  ]
)
def model(request):
  return dataclasses.replace(cases.CASES[request.param], scanned=False)


def test_keys_and_values_of_words_are_those_words(model):
  """Of the rows that `Prefix` trains: hidden states within 1e-5 of the largest."""
  params = families.init(model, jax.random.key(0))
  apply = jax.jit(families.build(model).apply)
  text = jax.random.randint(jax.random.key(1), (1, LENGTH), 0, model.vocab_size)
  at = jnp.arange(LENGTH)[None]
  whole, _ = apply({"params": params}, text, at, jnp.ones_like(at))
  _, read = apply(
    {"params": params},
    text[:, :N],
    at[:, :N],
    jnp.ones((1, N), jnp.int32),
    caches.empty(model, 1, N),
  )
  rows = [
    x[0].swapaxes(0, 1).reshape(N, -1)  # [K, P, H] of keys, and of values
    for layer in read.layers
    for x in (layer.keys, layer.values)
  ]
  how = prefix.Prefix(n_tokens=N)
  begun = how.begin(model, params, jax.random.key(2))
  own = {"rows": jnp.concatenate(rows, 1)}
  assert own["rows"].shape == begun["rows"].shape
  params[prefix.NAME] = how.made(model, own)
  there, _ = jax.jit(prefix.apply, static_argnums=0)(
    model, params, text[:, N:], at[:, : LENGTH - N], at[:, N:]
  )
  error = np.abs(there - whole[:, N:]).max() / np.abs(whole).max()
  assert error < 1e-5
