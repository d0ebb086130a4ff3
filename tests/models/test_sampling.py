"""What is drawn follows the law that the settings describe."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from models import sampling

V = 12
LOGITS = jnp.float32(np.random.default_rng(3).normal(0, 2, V))
SEEN = jnp.arange(V) % 3 == 0
N_DRAWS = 20_000


def law_of(settings: sampling.Config) -> np.ndarray:
  """The probabilities in float64, token by token, written from the papers."""
  c = settings
  scores = [float(x) for x in LOGITS]
  if c.repetition_penalty is not None:
    for v in np.flatnonzero(SEEN):
      worse = (
        1 / c.repetition_penalty if scores[v] > 0 else c.repetition_penalty
      )
      scores[v] *= worse
  weights = {v: np.exp(s / c.temperature) for v, s in enumerate(scores)}
  ranked = sorted(weights, key=weights.get, reverse=True)
  if c.top_k is not None:
    ranked = ranked[: c.top_k]
  if c.top_p is not None:
    mass, kept = sum(weights[v] for v in ranked), []
    for v in ranked:
      kept.append(v)
      if sum(weights[w] for w in kept) >= c.top_p * mass:
        break
    ranked = kept
  if c.min_p is not None:
    ranked = [v for v in ranked if weights[v] >= c.min_p * weights[ranked[0]]]
  total = sum(weights[v] for v in ranked)
  return np.array([weights[v] / total if v in ranked else 0 for v in range(V)])


SETTINGS = {
  "plain": {},
  "cold": {"temperature": 0.5},
  "hot": {"temperature": 1.7},
  "top_k": {"top_k": 3},
  "top_k of all": {"top_k": 1000},
  "top_p": {"top_p": 0.7},
  "top_p of all": {"top_p": 1.0},
  "min_p": {"min_p": 0.2},
  "penalty": {"repetition_penalty": 1.5},
  "all": {
    "temperature": 1.3,
    "top_k": 8,
    "top_p": 0.9,
    "min_p": 0.05,
    "repetition_penalty": 1.2,
  },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_law(name):
  settings = sampling.Config(**SETTINGS[name])
  law = sampling.law(settings, 1)
  # One row drawn at many positions: exactly how a text is drawn.
  draw = jax.jit(
    jax.vmap(
      lambda position: sampling.sample(
        law, LOGITS[None], SEEN[None], sampling.keys(0, 1), position[None]
      )[0]
    )
  )
  drawn = np.bincount(draw(jnp.arange(N_DRAWS)), minlength=V)
  expected = law_of(settings) * N_DRAWS
  assert not drawn[expected == 0].any()
  kept = expected > 0
  chi2 = ((drawn - expected)[kept] ** 2 / expected[kept]).sum()
  # Mean kept.sum() - 1; above 45 once in 300,000 with 11 degrees of freedom.
  assert chi2 < 45
  logits = sampling.transform(law, LOGITS[None], SEEN[None])
  np.testing.assert_allclose(
    jax.nn.softmax(logits)[0], law_of(settings), atol=1e-6
  )


def test_temperature_zero_takes_the_likeliest():
  law = sampling.law(sampling.Config(temperature=0.0), 1)
  token = sampling.sample(
    law, LOGITS[None], None, sampling.keys(0, 1), jnp.zeros(1, jnp.int32)
  )
  assert int(token[0]) == LOGITS.argmax()


def test_penalty_moves_the_greedy_choice():
  logits = jnp.asarray([[2.0, 1.5, -1.0]])
  seen = jnp.asarray([[True, False, True]])
  settings = sampling.Config(temperature=0.0, repetition_penalty=2.0)
  moved = sampling.transform(sampling.law(settings, 1), logits, seen)
  np.testing.assert_array_equal(moved, [[1.0, 1.5, -2.0]])


def test_rows_have_laws_of_their_own():
  rows = [
    sampling.Config(temperature=0.5, top_k=2, top_p=1.0),
    sampling.Config(temperature=2.0, top_k=V, top_p=0.5),
  ]
  both = jax.tree.map(
    lambda *xs: jnp.concatenate(xs), *[sampling.law(c, 1) for c in rows]
  )
  together = sampling.transform(both, jnp.stack([LOGITS, LOGITS]))
  for row, settings in zip(together, rows, strict=True):
    np.testing.assert_allclose(jax.nn.softmax(row), law_of(settings), atol=1e-6)


def test_ties_stay_together():
  logits = jnp.asarray([[1.0, 3.0, 1.0, 1.0]])
  cut = sampling.transform(sampling.law(sampling.Config(top_k=2), 1), logits)
  np.testing.assert_array_equal(cut, logits)


def test_a_draw_depends_on_seed_row_and_position_only():
  law = sampling.law(sampling.Config(), 4)
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, V)))
  keys, at = sampling.keys(7, 4), jnp.arange(4)
  drawn = sampling.sample(law, logits, None, keys, at)
  again = sampling.sample(law, logits[::-1], None, keys[::-1], at[::-1])
  np.testing.assert_array_equal(again[::-1], drawn)
  texts = {
    tuple(
      int(sampling.sample(law, logits, None, k, jnp.full(4, t))[0])
      for t in range(20)
    )
    for k in (keys, keys[::-1], sampling.keys(8, 4))
  }
  assert len(texts) == 3


@pytest.mark.parametrize(
  "setting",
  [
    {"max_tokens": 0},
    {"temperature": -0.1},
    {"top_k": 0},
    {"top_p": 0.0},
    {"top_p": 1.1},
    {"min_p": -0.1},
    {"repetition_penalty": 0.0},
    {"stop": ("end", "")},
  ],
)
def test_impossible_settings_are_named(setting):
  with pytest.raises(ValueError, match=next(iter(setting))):
    sampling.Config(**setting)


@pytest.mark.parametrize("cut", [{"top_k": 4}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_cut_without_a_draw_is_refused(cut):
  settings = sampling.Config(**cut)
  with pytest.raises(ValueError, match="changes nothing at temperature=0"):
    dataclasses.replace(settings, temperature=0.0)
