"""Counts by numpy against the formulas of the paper, one token at a time."""

import collections

import numpy as np
import pytest

from models.classic import ngram

BOS, EOS, VOCAB = 1, 2, 9


def texts(n: int, seed: int = 0) -> list[np.ndarray]:
  rng = np.random.default_rng(seed)
  return [rng.integers(3, 7, rng.integers(1, 12)) for _ in range(n)]


class ByHand:
  """Dictionaries, and a recursion."""

  def __init__(self, seen, n):
    grams = collections.Counter()
    for text in seen:
      whole = (*[BOS] * (n - 1), *map(int, text), EOS)
      for i in range(n - 1, len(whole)):
        grams[whole[i - n + 1 : i + 1]] += 1
    self.tables = {n: grams}
    for k in range(
      n - 1, 0, -1
    ):  # continuations: what different token is ahead
      self.tables[k] = collections.Counter(g[1:] for g in self.tables[k + 1])

  def discount(self, k):
    counts = collections.Counter(self.tables[k].values())
    if not counts[1] or not counts[2]:
      return 0.75
    return counts[1] / (counts[1] + 2 * counts[2])

  def p(self, context, token):
    k = len(context) + 1
    shorter = self.p(context[1:], token) if context else 1 / VOCAB
    table, d = self.tables[k], self.discount(k)
    after = [c for gram, c in table.items() if gram[:-1] == context]
    if not after:
      return shorter
    own = max(table[(*context, token)] - d, 0)
    return (own + d * len(after) * shorter) / sum(after)


def test_two_grams_of_a_toy_by_hand():
  """aab and ab: counts on paper. a is 3, b is 4."""
  model = ngram.fit(
    [np.array([3, 3, 4]), np.array([3, 4])], 2, 5, bos_id=BOS, eos_id=EOS
  )
  one, two = model.orders
  # Pairs: BOS a twice, a b twice, a a once, b EOS twice.
  assert sorted(two.counts.tolist()) == [1, 2, 2, 2]
  assert two.discount == 1 / (1 + 2 * 3)
  # Ahead of a lie BOS and a, ahead of b only a, ahead of the end only b.
  assert one.counts.tolist() == [1, 2, 1]
  assert one.discount == 2 / (2 + 2 * 1)
  # P(a) = (2 - 1/2) / 4 + 1/2 * 3/4 * 1/5; P(a | BOS) = (2 - 1/7 + 1/7 P(a)) / 2.
  p_a = 1.5 / 4 + 0.5 * 3 / 4 / 5
  first = (2 - 1 / 7 + p_a / 7) / 2
  found = 2 ** ngram.log2_likelihood(model, np.array([3]))
  np.testing.assert_allclose(found[0], first, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_probabilities_are_those_of_the_formulas(n):
  seen = texts(15)
  model = ngram.fit(seen, n, VOCAB, bos_id=BOS, eos_id=EOS)
  slow = ByHand(seen, n)
  for text in [*texts(5, seed=1), np.array([7, 8, 3])]:  # 7, 8: never seen
    whole = (*[BOS] * (n - 1), *map(int, text), EOS)
    wanted = [
      slow.p(whole[i - n + 1 : i], whole[i]) for i in range(n - 1, len(whole))
    ]
    found = 2 ** ngram.log2_likelihood(model, text)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("context", [[], [3], [5, 4], [8, 3], [6, 6, 6, 6]])
def test_probabilities_add_up_to_one(context):
  model = ngram.fit(texts(15), 3, VOCAB, bos_id=BOS, eos_id=EOS)
  after = [
    2 ** ngram.log2_likelihood(model, np.array([*context, token]))[-2]
    for token in range(VOCAB)
  ]
  if not context:
    after = [
      2 ** ngram.log2_likelihood(model, np.array([token]))[0]
      for token in range(VOCAB)
    ]
  np.testing.assert_allclose(sum(after), 1, rtol=1e-12)


def test_longer_grams_tell_more_of_what_repeats():
  rng = np.random.default_rng(0)
  words = [rng.integers(3, 8, 4) for _ in range(6)]

  def text(seed):
    draws = np.random.default_rng(seed).integers(0, 6, 40)
    return np.concatenate([words[i] for i in draws])

  seen, asked = [text(i) for i in range(20)], text(99)
  bits = [
    -ngram.log2_likelihood(
      ngram.fit(seen, n, VOCAB, bos_id=BOS, eos_id=EOS), asked
    ).mean()
    for n in (1, 2, 3, 5)
  ]
  assert bits == sorted(bits, reverse=True)
  assert bits[-1] < 0.5 * bits[0]
