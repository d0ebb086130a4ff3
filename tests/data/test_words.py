"""Words, windows and pairs, counted again by loops."""

import collections

import numpy as np
import pytest

from data import cooccurrence, words


def corpus(n_texts=40, seed=0) -> words.Corpus:
  rng = np.random.default_rng(seed)
  texts = [
    [f"w{i}" for i in rng.zipf(1.5, rng.integers(0, 30)) if i < 50]
    for _ in range(n_texts)
  ]
  return words.index(texts, min_count=2, max_words=20)


def test_words_are_numbered_by_how_often_they_occur():
  texts = [["b", "a", "rare", "b"], ["c", "a", "c", "b"], []]
  found = words.index(texts, min_count=2, max_words=9)
  assert found.words == ("b", "a", "c")
  assert found.counts.tolist() == [3, 2, 2]
  assert found.ids.tolist() == [0, 1, 0, 2, 1, 2, 0]  # as if "rare" was not
  assert found.texts.tolist() == [0, 0, 0, 1, 1, 1, 1]
  assert words.index(texts, min_count=1, max_words=1).words == ("b",)


def test_a_word_is_what_letters_digits_and_underscores_join():
  text = "Die Größe von x_1 ist 3.5, l'été"
  assert words.split(text, lower=True) == (
    "die größe von x_1 ist 3 5 l été".split()
  )
  assert words.split(text, lower=False)[0] == "Die"


def test_around_a_word_are_those_of_its_text_within_its_reach():
  c = corpus()
  reach = np.random.default_rng(1).integers(1, 5, len(c.ids))
  found = words.around(c.ids, c.texts, reach)
  for i, row in enumerate(found):
    wanted = [
      c.ids[j]
      for j in range(max(i - reach[i], 0), min(i + reach[i] + 1, len(c.ids)))
      if j != i and c.texts[j] == c.texts[i]
    ]
    assert sorted(row[row != words.NONE]) == sorted(wanted)


def test_frequent_words_are_passed_over_as_the_paper_says():
  c = corpus(400)
  kept = words.keeping(c.counts, 0.01)
  share = c.counts / c.counts.sum()
  np.testing.assert_allclose(kept, np.minimum(1, (0.01 / share) ** 0.5))
  rng = np.random.default_rng(0)
  drawn = np.mean([words.thinned(c, kept, rng) for _ in range(200)], axis=0)
  n_first = c.counts[0] * 200
  assert abs(drawn[c.ids == 0].mean() - kept[0]) < 4 * n_first**-0.5
  assert words.keeping(c.counts, 0.0).tolist() == [1.0] * len(c.counts)


@pytest.mark.parametrize("piece", [7, 1 << 18])
def test_pairs_are_those_of_a_loop_wherever_pieces_end(piece, monkeypatch):
  monkeypatch.setattr(cooccurrence, "PIECE", piece)
  c = corpus()
  wanted = collections.Counter()
  for i, j in np.ndindex(len(c.ids), len(c.ids)):
    if i != j and abs(i - j) <= 4 and c.texts[i] == c.texts[j]:
      wanted[c.ids[i], c.ids[j]] += 1 / abs(i - j)
  found = cooccurrence.count(c, window=4, max_pairs=10_000)
  keys = list(zip(found.rows.tolist(), found.columns.tolist(), strict=True))
  assert keys == sorted(wanted)
  np.testing.assert_allclose(
    found.weights, [wanted[key] for key in keys], rtol=1e-6
  )


def test_too_many_pairs_are_refused_by_name():
  with pytest.raises(ValueError, match="model.max_pairs=5 .*max_words"):
    cooccurrence.count(corpus(), window=4, max_pairs=5)


def test_texts_without_words_are_refused(tmp_path):
  (tmp_path / "a.txt").write_text("one two three one")
  config = words.Config(sources=(f"{tmp_path}/a.txt",))
  with pytest.raises(ValueError, match="hold 0 words .*data.min_count=5"):
    words.read(config)
