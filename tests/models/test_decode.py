"""Reading from a cache equals reading the whole text, however it is laid out."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from models import cache as caches
from models import (
  decode,
  deepseek,
  families,
  gpt,
  llama,
  mixtral,
  rnn,
  rnnsearch,
  sampling,
)
from models.layers import latent, moe, position, stack
from sharding import mesh, rules

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
  "mixtral": mixtral.Config(
    **vars(_LLAMA),
    experts=moe.Config(n_experts=4, n_active=2, capacity_factor=0.5),
  ),
  "deepseek": deepseek.Config(
    vocab_size=64,
    d_model=16,
    n_layers=3,
    n_heads=4,
    d_ff=32,
    d_expert=8,
    experts=moe.Config(
      n_experts=8,
      n_active=2,
      n_shared=1,
      scores="sigmoid",
      biased=True,
      n_groups=4,
      n_active_groups=2,
      n_ranking=2,
    ),
    attention=latent.Config(
      q_rank=8, kv_rank=6, d_plain=6, d_rotary=4, d_value=10
    ),
    ahead=True,
    dtype="float32",
  ),
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
CONFIGS |= {
  cell: rnn.Config(
    vocab_size=64, cell=cell, d_model=16, n_layers=2, max_length=64,
    dtype="float32",
  )
  for cell in ("lstm", "gru")
} | {
  "rnnsearch": rnnsearch.Config(
    vocab_size=64, d_model=16, n_layers=2, max_length=64, dtype="float32"
  )
}  # fmt: skip
# One of every mechanism; those that share all of theirs with another are slow.
_OTHERS = {
  name: dataclasses.replace(config, vocab_size=64, max_length=64)
  for name, config in cases.CASES.items()
  if families.is_causal(config)
  and (
    families.name(config) not in ("llama", "mixtral", "deepseek", "gpt")
    or name in ("smollm3", "qwen2_moe")
  )
}
CONFIGS |= _OTHERS
_FAST = {"gemma3", "bloom", "mamba2", "t5", "bart"}
EVERY = [
  pytest.param(name, marks=pytest.mark.slow)
  if name in _OTHERS.keys() - _FAST
  else name
  for name in CONFIGS
]
GREEDY = sampling.Config(temperature=0.0, max_tokens=8)
PROMPTS = [[5], [7, 8, 9, 10, 11], [int(i) for i in range(20, 38)]]
SOURCES = [[3, 4, 5, 6, 7, 8, 9], [40], [int(i) for i in range(10, 22)]]


def sources(name: str) -> list[list[int]] | None:
  """What the prompts are about, for a family that reads two texts."""
  return SOURCES if families.reads(CONFIGS[name], "source") else None


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
  given = sources(name) and on_device(sources(name), 16)

  def placed(tokens, real):
    positions = jnp.arange(tokens.shape[1])[None]
    return tokens, jnp.broadcast_to(positions, tokens.shape), jnp.int32(real)

  def read(params, tokens, real):
    hidden, _ = families.build(config).apply(
      {"params": params},
      *placed(tokens, real),
      **({"source": placed(*given)} if given else {}),
    )
    return families.logits(config, params, hidden)

  return (
    jax.jit(read),
    jax.jit(functools.partial(decode.prefill, config, source=given)),
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


def on_device(texts, size: int, side: str = "right"):
  return tuple(jnp.asarray(x) for x in padded(texts, size, side))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", EVERY)
def test_cached_logits_are_those_of_the_whole_text(name, side):
  # I1 and I2: every step of ragged prompts, far beyond a window of 6.
  config, params = model(name)
  read, prefill, step = compiled(name)
  n_new = 10
  rng = np.random.default_rng(0)
  texts = [p + rng.integers(0, 64, n_new).tolist() for p in PROMPTS]
  want = np.asarray(read(params, *decode.pad(texts, 32)))
  atol = 1e-5 * max(1.0, np.abs(want).max())
  tokens, real = padded(PROMPTS, 24, side)
  cache = caches.empty(config, len(PROMPTS), 32)
  logits, cache = prefill(params, tokens, real, cache)
  for i in range(n_new):
    at = [len(p) + i for p in PROMPTS]
    expected = want[range(len(at)), np.subtract(at, 1)]
    np.testing.assert_allclose(logits, expected, atol=atol, rtol=0)
    token = jnp.asarray([t[n] for t, n in zip(texts, at, strict=True)])
    logits, cache = step(params, token, cache)


@pytest.mark.parametrize("sides", [("left", "left"), ("right", "left")])
@pytest.mark.parametrize("name", ["llama", "mixed", "gpt"])
def test_two_chunks_are_read_as_one(name, sides):
  # The second chunk of 20 laps a ring of 6 slots more than three times.
  config, params = model(name)
  _, prefill, step = compiled(name)
  texts = [[5, 6], [7, 8, 9, 10, 11], list(range(20, 47))]
  cache = caches.empty(config, 3, 48)
  for part, side in zip((slice(0, 1), slice(1, None)), sides, strict=True):
    tokens, real = padded([t[part] for t in texts], 26, side)
    got, cache = prefill(params, tokens, real, cache)
  whole = caches.empty(config, 3, 48)
  want, whole = prefill(params, *padded(texts, 32, "left"), whole)
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
  token = jnp.asarray([1, 2, 3])
  got, _ = step(params, token, cache)
  want, _ = step(params, token, whole)
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def greedy(name: str, prompt: list[int], n_new: int) -> list[int]:
  """Without a cache, without a loop on the device: read all, take the best."""
  _, params = model(name)
  read, _, _ = compiled(name)
  text = list(prompt)
  for _ in range(n_new):
    logits = read(params, *decode.pad([text] * len(PROMPTS), 32))
    logits = logits[PROMPTS.index(prompt), len(text) - 1]
    text.append(int(logits.argmax()))
  return text[len(prompt) :]


@pytest.mark.parametrize("name", ["mixed", "gpt", "t5"])
def test_generate_and_stream_write_what_a_plain_loop_writes(name):
  config, params = model(name)
  want = [greedy(name, prompt, GREEDY.max_tokens) for prompt in PROMPTS]
  arguments = config, params, PROMPTS, GREEDY, [-1], None, sources(name)
  assert decode.generate(*arguments) == want
  steps = decode.stream(*arguments)
  assert [list(row) for row in zip(*steps, strict=True)] == want


def test_a_text_ends_with_its_end_id():
  config, params = model("mixed")
  plain = decode.generate(config, params, PROMPTS, GREEDY, [-1])
  end = plain[2][2]
  want = [t[: t.index(end) + 1] if end in t else t for t in plain]
  assert len(want[2]) <= 3
  assert decode.generate(config, params, PROMPTS, GREEDY, [end]) == want
  steps = decode.stream(config, params, PROMPTS, GREEDY, [end])
  rows = [[i for i in row if i is not None] for row in zip(*steps, strict=True)]
  assert rows == want
  all_end = decode.stream(config, params, PROMPTS[2:] * 3, GREEDY, [end])
  assert list(all_end) == [[i] * 3 for i in want[2]]


def test_a_text_knows_nothing_of_its_batch():
  # I2, drawn: the same keys give the same ids with others beside or alone.
  config, params = model("mixed")
  write = functools.partial(decode.generate, config, params)
  settings = sampling.Config(
    max_tokens=8, temperature=1.2, top_k=20, repetition_penalty=1.3
  )
  keys = sampling.keys(5, len(PROMPTS))
  together = write(PROMPTS, settings, keys=keys)
  for i, prompt in enumerate(PROMPTS[:2]):  # 16 slots, where three need 32
    assert write([prompt], settings, keys=keys[i : i + 1]) == [together[i]]
  by_seed = dataclasses.replace(settings, seed=5)
  assert write(PROMPTS, by_seed) == together
  other = dataclasses.replace(settings, seed=6)
  assert write(PROMPTS, other) != together


def test_the_penalty_sees_the_prompt_and_the_text():
  config, params = model("llama")
  settings = dataclasses.replace(GREEDY, repetition_penalty=1e6)
  for prompt, text in zip(
    PROMPTS, decode.generate(config, params, PROMPTS, settings), strict=True
  ):
    assert len({*prompt, *text}) == len(prompt) + len(text)


def test_one_compile_for_a_bucket():
  config, params = model("llama")
  config = dataclasses.replace(config, n_layers=1)
  jitted = (decode._begin, decode._finish)

  def n_compiled(lengths, temperature=0.5, max_tokens=8):
    before = [f._cache_size() for f in jitted]
    settings = sampling.Config(temperature=temperature, max_tokens=max_tokens)
    for n in lengths:
      decode.generate(config, params, [[1] * n], settings)
    return [f._cache_size() - b for f, b in zip(jitted, before, strict=True)]

  assert n_compiled([9, 12, 16]) == [1, 1]
  assert n_compiled([10, 15], temperature=0.7, max_tokens=9) == [0, 0]
  assert n_compiled([17, 20, 23]) == [1, 0]  # the same 32 slots
  assert n_compiled([32]) == [1, 1]


def test_prefill_holds_no_logits_of_a_whole_prompt():
  config, params = model("llama")
  cache = caches.empty(config, 3, 32)
  tokens, real = decode.pad(PROMPTS, 24)
  text = str(
    jax.make_jaxpr(functools.partial(decode.prefill, config))(
      params, tokens, real, cache
    )
  )
  assert "f32[3,64]" in text and "f32[3,24,16]" in text
  assert "f32[3,24,64]" not in text


@pytest.mark.parametrize("n_rows", [1, 3])
def test_a_step_writes_in_place(n_rows):
  config, params = model("llama")
  step = jax.jit(functools.partial(decode.step, config), donate_argnums=2)
  cache = caches.empty(config, n_rows, 48)
  token = jnp.zeros(n_rows, jnp.int32)
  # As where it is served: with what `make test` leaves out to be fast.
  whole = {"xla_cpu_use_fusion_emitters": True}
  program = step.lower(params, token, cache).compile(whole).as_text()
  slots = rf"= f32\[({n_rows},)?2,48,8\]\S*"
  assert re.search(rf"{slots} scatter\(", program)
  assert not re.findall(rf"{slots} (copy|transpose)\(.*", program)


def test_a_scanned_model_is_unrolled_and_cast_once():
  config, params = model("mixed")
  stacked = {**params, "stack": stack.stack(params["stack"], 2)}
  bf16 = dataclasses.replace(config, dtype="bfloat16")
  again, cast = decode.unrolled(
    dataclasses.replace(bf16, scanned=True), stacked
  )
  assert again == bf16
  prefill = jax.jit(functools.partial(decode.prefill, bf16))
  tokens, real = decode.pad(PROMPTS, 24)
  got, want = (
    prefill(p, tokens, real, caches.empty(bf16, 3, 24))[0]
    for p in (cast, params)
  )
  np.testing.assert_array_equal(got, want)
  layer = cast["stack"]["layer_1"]
  assert layer["attention"]["q"].dtype == jnp.bfloat16
  assert layer["attention_norm"]["scale"].dtype == jnp.float32


def test_a_source_is_read_alike_on_either_side_and_once():
  config, params = model("t5")
  _, _, step = compiled("t5")
  prefill = jax.jit(functools.partial(decode.prefill, config))
  first, other = (
    prefill(
      params,
      *on_device([[1]] * 3, 4),
      caches.empty(config, 3, 32),
      on_device(SOURCES, 16, side),
    )
    for side in ("right", "left")
  )
  np.testing.assert_allclose(other[0], first[0], atol=1e-5, rtol=0)
  # A step finds the source in the cache: no weight of the encoder is read.
  encoder = {k: v for k, v in params.items() if k.startswith("encoder")}
  poisoned = {**params, **jax.tree.map(lambda x: x * jnp.nan, encoder)}
  token = jnp.array([4, 5, 6])
  want, _ = step(params, token, first[1])
  got, _ = step(poisoned, token, first[1])
  np.testing.assert_array_equal(got, want)
  got, _ = step(params, token, other[1])
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def test_a_prompt_that_is_a_prefix_is_seen_whole():
  config, params = model("gpt")
  rows, lengths = jnp.arange(3), jnp.array([[len(p)] for p in PROMPTS])
  tokens, real = on_device(PROMPTS, 32)
  places = jnp.broadcast_to(jnp.arange(32)[None], tokens.shape)

  @functools.partial(jax.jit, static_argnums=1)
  def read(params, prefixed):
    hidden, _ = families.build(config).apply(
      {"params": params},
      tokens.at[rows, lengths[:, 0]].set(9),
      places,
      jnp.int32(places <= lengths),
      prefix=jnp.broadcast_to(lengths, tokens.shape),
    )
    at = hidden[rows[:, None], jnp.concatenate([lengths - 1, lengths], 1)]
    whole = families.logits(config, params, at)
    cache = caches.empty(config, 3, 32)
    first, cache = decode.prefill(
      config, params, tokens, real, cache, prefixed=prefixed
    )
    second, _ = decode.step(config, params, jnp.full(3, 9), cache)
    return whole, jnp.stack([first, second], 1)

  want, got = read(params, True)
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
  want, got = read(params, False)
  assert np.abs(got - want)[1:].max(-1).min() > 1e-3


@pytest.mark.parametrize(
  "name",
  [
    "mixed",
    pytest.param("deepseek", marks=pytest.mark.slow),
    pytest.param("bloom", marks=pytest.mark.slow),
    pytest.param("falcon_7b", marks=pytest.mark.slow),
    pytest.param("t5", marks=pytest.mark.slow),
  ],
)
def test_a_mesh_writes_what_one_device_writes(name):
  config, params = model(name)
  prompts = [*PROMPTS, [3, 1, 4]]
  tokens, real = decode.pad(prompts, 24)
  texts = sources(name) and [*SOURCES, [8, 9]]
  source = texts and on_device(texts, 16)

  def run(params, tokens, real):
    cache = caches.empty(config, 4, 32)
    logits, cache = decode.prefill(config, params, tokens, real, cache, source)
    every = [logits]
    for token in (1, 2, 3):
      logits, cache = decode.step(config, params, jnp.full(4, token), cache)
      every.append(logits)
    return jnp.stack(every), cache

  want, _ = jax.jit(run)(params, tokens, real)
  layout = rules.make(mesh.make(mesh.Config(data=4, tensor=2)), "tensor")
  placed = jax.device_put(
    params, layout.shardings(families.axes(config), params)
  )
  with layout.use():
    first = jax.jit(lambda: caches.empty(config, 4, 32))()
    got, cache = jax.jit(run)(placed, tokens, real)
    written = decode.generate(config, placed, prompts, GREEDY, sources=texts)
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
  # Another text's are where the layout puts what was computed from it.
  own = [layer.replace(source=None) for layer in cache.layers]
  for slots in jax.tree.leaves((first.layers, own)):
    # Compressed keys and values are one head, which no axis splits.
    names = caches.NAMES if slots.shape[1] > 1 else ("batch", None, None, None)
    where = layout.sharding(names, slots.shape, "activations")
    assert slots.sharding.is_equivalent_to(where, slots.ndim)
  alone = decode.generate(config, params, prompts, GREEDY, sources=texts)
  assert written == alone


@pytest.mark.parametrize(
  ("prompts", "said"),
  [
    ([[1], []], "prompt 1 has no tokens"),
    ([[1] * 57], "max_tokens=8 .* max_length=64"),
    ([[1, 64]], "the id 64, outside the vocab_size=64"),
    ([[-1]], "the id -1"),
  ],
)
def test_prompts_that_cannot_be_read_are_told(prompts, said):
  config, params = model("gpt")
  with pytest.raises(ValueError, match=said):
    decode.generate(config, params, prompts, GREEDY)


@pytest.mark.parametrize(
  ("name", "given", "said"),
  [
    ("gpt", SOURCES, "gpt reads no source"),
    ("t5", None, "there are none for 3 prompts"),
    ("t5", SOURCES[:2], "there are 2 for 3"),
    ("t5", [*SOURCES[:2], [99]], "the id 99"),
    ("bart", [*SOURCES[:2], [1] * 65], "max_length=64"),
  ],
)
def test_sources_that_cannot_be_read_are_told(name, given, said):
  config, params = model(name)
  with pytest.raises(ValueError, match=said):
    decode.generate(config, params, PROMPTS, GREEDY, sources=given)


def test_the_last_position_of_a_model_is_used():
  config, params = model("gpt")
  (text,) = decode.generate(config, params, [[1] * 56], GREEDY)
  assert len(text) == 8
