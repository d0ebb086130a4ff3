"""The kernels for any device, every variant, against loops in float64: N1, N3."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from models import attention_kernels
from models.layers.mask import Blocks, Mask
from models.layers.position import RelativeBias
from models.layers.reference import attend

B, T, H = 2, 9, 8
N, K = 4, 2


def normal(*shape, seed=0, std=1.0):
  rng = np.random.default_rng(seed)
  return jnp.float32(std * rng.normal(size=shape))


def packed(n_tokens):
  """Row 0: segments of 4 and 3, then padding; row 1: one segment."""
  segments = np.ones((B, n_tokens), np.int32)
  positions = np.tile(np.arange(n_tokens, dtype=np.int32), (B, 1))
  segments[0, 4:7], segments[0, 7:] = 2, 0
  positions[0, 4:] -= 4
  return jnp.asarray(positions), jnp.asarray(segments)


@dataclasses.dataclass
class Case:
  n_kv_heads: int = K
  n_keys: int = T
  mask: dict = dataclasses.field(default_factory=dict)
  options: dict = dataclasses.field(default_factory=dict)

  def operands(self):
    q = normal(B, T, N, H, seed=1)
    k = normal(B, self.n_keys, self.n_kv_heads, H, seed=2)
    return q, k, normal(*k.shape, seed=3)

  def masked(self):
    return Mask(*packed(T), *packed(self.n_keys), **self.mask)


# Tokens of row 0 lie in texts of 4 and 3, those of row 1 in one of 9.
MARKED = jnp.array([[0, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0, 1]])
LENGTHS = jnp.array([[4] * 4 + [3] * 3 + [2] * 2, [9] * 9])


def marks(array, **kind):
  return dict(causal=False, q_marks=array, kv_marks=array, **kind)


SLOPES = 2.0 ** -np.arange(1, N + 1)
DISTANCE = np.arange(T)[:, None] - np.arange(T)[None]
# Of every place: of a row's second segment it is another number.
PREFIX = jnp.array([[2] * 5 + [3] * (T - 5), [5] * T])
BUCKETS = dict(causal=False, farthest=6)
CASES = {
  "causal": Case(n_kv_heads=N),
  "grouped": Case(),
  "multi_query": Case(n_kv_heads=1),
  "sliding": Case(mask=dict(window=3)),
  "bidirectional": Case(mask=dict(causal=False)),
  "bidirectional_sliding": Case(mask=dict(causal=False, window=2)),
  "marked": Case(mask=marks(MARKED, window=2)),
  "blocks": Case(mask=marks(LENGTHS, blocks=Blocks(size=1, n_random=1))),
  "prefix": Case(mask=dict(prefix=PREFIX)),
  "cross": Case(n_keys=13, mask=dict(causal=False)),
  "scaled": Case(options=dict(scale=0.1)),
  "soft_capped": Case(options=dict(softcap=1.5)),
  "sinks": Case(options=dict(sinks_N=normal(N, seed=5))),
  "alibi": Case(
    options=dict(bias_NTS=jnp.float32(-SLOPES[:, None, None] * DISTANCE))
  ),
  "slopes": Case(options=dict(slopes_N=jnp.float32(SLOPES))),
  "relative": Case(
    mask=dict(causal=False),
    options=dict(bias=RelativeBias(normal(8, N, seed=6), **BUCKETS)),
  ),
  "all": Case(
    mask=dict(window=4, prefix=PREFIX),
    options=dict(
      softcap=2.0,
      sinks_N=normal(N, seed=5),
      bias_NTS=jnp.float32(-SLOPES[:, None, None] * DISTANCE),
    ),
  ),
}


# Chunks that do not divide the queries, and do not keep segments together.
IN_CHUNKS = functools.partial(attention_kernels.chunked, chunk=4)


def sees(mask, b, t, s):
  """The rules of a mask, one query and one key at a time."""
  i, j = int(mask.q_positions[b, t]), int(mask.kv_positions[b, s])
  same = mask.q_segments[b, t] == mask.kv_segments[b, s] != 0
  window = mask.window or 10**6
  if not mask.causal:
    near = abs(i - j) < window
    if mask.blocks is not None:
      near = LENGTHS[b, t] <= 7 or abs(i - j) <= 1 or {0, 8} & {i, j}
    elif mask.kv_marks is not None:
      near |= bool(mask.q_marks[b, t] or mask.kv_marks[b, s])
    return same and near
  prefix = 0 if mask.prefix is None else int(mask.prefix[b, t])
  return same and (j <= i or j < prefix) and i - j < window


def bucket_of(ahead, n_buckets, farthest):
  """Of a key that lies so many places ahead, or behind where negative."""
  half = n_buckets // 2
  first, distance = half * (ahead > 0), abs(ahead)
  if distance < half // 2:
    return first + distance
  turns = math.log(distance / (half // 2)) / math.log(farthest / (half // 2))
  return first + min(half // 2 + int(turns * (half - half // 2)), half - 1)


def attended(
  q,
  k,
  v,
  mask,
  scale=None,
  softcap=None,
  bias=None,
  sinks=None,
  slopes=None,
  relative=None,
):
  """What attention is, head by head and query by query, in float64."""
  q, k, v = (np.float64(x) for x in (q, k, v))
  out = np.zeros(q.shape)
  for b, t, n in np.ndindex(q.shape[:3]):
    g = n // (q.shape[2] // k.shape[2])
    seen = [s for s in range(k.shape[1]) if sees(mask, b, t, s)]
    if not seen:
      continue
    logits = k[b, seen, g] @ q[b, t, n] * (scale or q.shape[3] ** -0.5)
    if softcap:
      logits = softcap * np.tanh(logits / softcap)
    if bias is not None:
      logits = logits + np.float64(bias[n, t, seen])
    if slopes is not None:
      ago = mask.q_positions[b, t] - mask.kv_positions[b, np.array(seen)]
      logits = logits - np.float64(slopes[n]) * np.float64(ago)
    if mask.blocks is not None and LENGTHS[b, t] > 7 and 0 < t < 8:
      logits[seen.index(0)] += np.log(2)  # the first block counts twice
    if relative is not None:
      ahead = mask.kv_positions[b] - mask.q_positions[b, t]
      buckets = [bucket_of(int(ahead[s]), 8, relative.farthest) for s in seen]
      logits = logits + np.float64(relative.table)[buckets, n]
    top = logits.max()
    weights = np.exp(logits - top)
    total = weights.sum()
    if sinks is not None:
      total += np.exp(np.float64(sinks[n]) - top)
    out[b, t, n] = weights / total @ v[b, seen, g]
  return out


@pytest.mark.parametrize("kernel", [attend, IN_CHUNKS], ids=["whole", "chunks"])
@pytest.mark.parametrize("name", CASES)
def test_attention_is_its_definition(name, kernel):
  case = CASES[name]
  mask = case.masked()
  run = jax.jit(lambda q, k, v: kernel(q, k, v, mask, **case.options))
  got = run(*case.operands())
  names = {
    "bias_NTS": "bias",
    "sinks_N": "sinks",
    "slopes_N": "slopes",
    "bias": "relative",
  }
  options = {names.get(key, key): x for key, x in case.options.items()}
  expected = attended(*case.operands(), mask, **options)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def attend_and_pull(operands, mask, **options):
  """The output, and the gradients of its sum."""

  @jax.jit
  def run(*operands):
    out, pull = jax.vjp(lambda *x: attend(*x, mask, **options), *operands)
    return out, pull(jnp.ones_like(out))

  return run(*operands)


@pytest.mark.parametrize("name", ["grouped", "all"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_see_nothing_are_zero_and_move_nothing(name, dtype):
  case = CASES[name]
  mask, padding = case.masked(), np.asarray(packed(T)[1]) == 0
  operands = [x.astype(dtype) for x in case.operands()]
  operands[1:] = [x.at[padding].set(1e9) for x in operands[1:]]

  out, gradients = attend_and_pull(operands, mask, **case.options)
  for x in (out, *gradients):
    assert np.isfinite(np.float32(x)).all()
    assert not np.float32(x)[padding].any()
    assert np.float32(x)[~padding].any()


def test_masks_and_huge_logits_stay_finite_in_bf16():
  """Probabilities of 0 and 1 exactly, whatever masks come together: N4."""
  case = CASES["all"]
  q, k, v = case.operands()
  operands = [x.astype(jnp.bfloat16) for x in (1e4 * q, 1e4 * k, v)]
  out, gradients = attend_and_pull(operands, case.masked())
  for x in (out, *gradients):
    assert np.isfinite(np.float32(x)).all()
  expected = attended(*operands, case.masked())
  np.testing.assert_allclose(np.float32(out), expected, rtol=0.01, atol=0.01)
