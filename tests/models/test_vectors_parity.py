"""Word vectors beside gensim: its hash, its n-grams, its files."""

import numpy as np
import pytest
from etils import epath

pytest.importorskip("gensim")
from gensim.models import KeyedVectors  # noqa: E402
from gensim.models.fasttext_inner import (  # noqa: E402
  compute_ngrams_bytes,
  ft_hash_bytes,
)

from models.classic import subwords, vectors  # noqa: E402

pytestmark = pytest.mark.parity
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("lengths", [(3, 6), (1, 3), (2, 2)])
def test_ngrams_and_hashes_of_a_thousand_words(lengths):
  config = subwords.Config(shortest=lengths[0], longest=lengths[1])
  letters = list("abcxyz_09éßñж数据🙂")
  for _ in range(1000):
    word = "".join(RNG.choice(letters, RNG.integers(1, 12)))
    ours = [part.encode() for part in subwords.ngrams(config, word)]
    assert ours == list(compute_ngrams_bytes(word, *lengths)), word
    assert list(map(subwords.fnv1a, ours)) == list(map(ft_hash_bytes, ours))


@pytest.mark.parametrize("binary", [False, True])
def test_files_go_both_ways(binary, tmp_path):
  words = ("the", "naïve", "数据", "x_1")
  ours = vectors.Vectors(words, np.float32(RNG.normal(size=(4, 6))))
  path = epath.Path(tmp_path)
  write = vectors.write_binary if binary else vectors.write
  write(path / "ours", ours)
  theirs = KeyedVectors.load_word2vec_format(str(path / "ours"), binary=binary)
  assert tuple(theirs.index_to_key) == words
  np.testing.assert_array_equal(theirs.vectors, ours.table)
  near = [word for word, _ in theirs.most_similar("the", topn=3)]
  found = ours.nearest(ours.of("the"), 3, without=("the",))
  assert [word for word, _ in found] == near
  theirs.save_word2vec_format(str(path / "theirs"), binary=binary)
  read = vectors.read_binary if binary else vectors.read
  back = read(path / "theirs")
  assert back.words == words
  np.testing.assert_array_equal(back.table, ours.table)


def test_glove_files_are_those_without_a_head(tmp_path):
  ours = vectors.Vectors(("a", "b"), np.float32(RNG.normal(size=(2, 6))))
  vectors.write(epath.Path(tmp_path / "glove.txt"), ours, headed=False)
  theirs = KeyedVectors.load_word2vec_format(
    str(tmp_path / "glove.txt"), binary=False, no_header=True
  )
  np.testing.assert_array_equal(theirs.vectors, ours.table)
