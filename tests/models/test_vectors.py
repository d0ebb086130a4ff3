"""Files of word vectors, neighbours, and words as parts."""

import numpy as np
import pytest
from etils import epath

from models.classic import subwords, vectors

RNG = np.random.default_rng(0)
WORDS = ("the", "naïve", "数据", "x_1", "a")
FOUND = vectors.Vectors(WORDS, np.float32(RNG.normal(size=(5, 7)) ** 3))


@pytest.mark.parametrize("kind", ["word2vec", "glove", "binary"])
def test_a_file_gives_back_every_bit(kind, tmp_path):
  path = epath.Path(tmp_path) / "vectors"
  if kind == "binary":
    vectors.write_binary(path, FOUND)
    back = vectors.read_binary(path)
  else:
    vectors.write(path, FOUND, headed=kind == "word2vec")
    back = vectors.read(path)
  assert back.words == WORDS
  np.testing.assert_array_equal(back.table, FOUND.table)


def test_the_text_is_that_of_word2vec(tmp_path):
  small = vectors.Vectors(("be", "is"), np.float32([[0.5, -1], [2, 1e-9]]))
  vectors.write(epath.Path(tmp_path) / "v.txt", small)
  text = (epath.Path(tmp_path) / "v.txt").read_text()
  assert text == "2 2\nbe 0.5 -1\nis 2 9.99999972e-10\n"
  vectors.write_binary(epath.Path(tmp_path) / "v.bin", small)
  raw = (epath.Path(tmp_path) / "v.bin").read_bytes()
  assert raw.startswith(b"2 2\nbe \x00\x00\x00\x3f\x00\x00\x80\xbf\nis ")


@pytest.mark.parametrize(
  ("text", "complaint"),
  [
    ("2 2\na 1 2\n", "holds 1 words, and promises 2"),
    ("2 2\na 1 2\nb 1\n", "txt:3 has no 2 numbers"),
    ("a 1 2\nb 1 x\n", "txt:2: could not convert"),
    ("a 1 2\nb 1 nan\n", "not finite"),
    ("0 5\n", "holds 0 words"),
  ],
)
def test_a_damaged_text_is_refused_with_its_line(text, complaint, tmp_path):
  (epath.Path(tmp_path) / "v.txt").write_text(text)
  with pytest.raises(ValueError, match=complaint):
    vectors.read(epath.Path(tmp_path) / "v.txt")


def test_a_binary_that_promises_too_much_is_refused(tmp_path):
  path = epath.Path(tmp_path) / "v.bin"
  vectors.write_binary(path, FOUND)
  raw = path.read_bytes()
  path.write_bytes(b"999999999999 300\n" + raw)
  with pytest.raises(ValueError, match="too few for 999,999,999,999 words"):
    vectors.read_binary(path)
  path.write_bytes(raw[:-5])
  with pytest.raises(ValueError, match="ends within word 5 of 5"):
    vectors.read_binary(path)
  path.write_bytes(b"\0" * 99)
  with pytest.raises(ValueError, match="begins with no 'V D'"):
    vectors.read_binary(path)


def test_glove_has_words_with_spaces(tmp_path):
  (epath.Path(tmp_path) / "v.txt").write_text("a 1 2\n. . . 3 4\n")
  assert vectors.read(epath.Path(tmp_path) / "v.txt").words == ("a", ". . .")


def test_neighbours_are_those_of_largest_cosine():
  query = np.float32(RNG.normal(size=7))
  cosines = [
    float(row @ query / np.linalg.norm(row) / np.linalg.norm(query))
    for row in FOUND.table
  ]
  order = np.argsort(cosines)[::-1]
  near = FOUND.nearest(query, 3)
  assert [w for w, _ in near] == [WORDS[i] for i in order[:3]]
  np.testing.assert_allclose(
    [c for _, c in near], np.sort(cosines)[::-1][:3], 1e-5
  )
  without = (WORDS[order[0]],)
  assert FOUND.nearest(query, 99, without)[0][0] == WORDS[order[1]]
  assert len(FOUND.nearest(query, 99, without)) == 4


def test_an_analogy_is_a_parallelogram():
  """Four words of two sexes and two ranks, and others."""
  rank, sex, *others = np.linalg.qr(RNG.normal(size=(9, 9)))[0]
  table = [rank + sex, rank - sex, 0.3 * rank + sex, 0.3 * rank - sex, *others]
  names = ("king", "queen", "man", "woman", *"abcdefg")
  found = vectors.Vectors(names, np.float32(table))
  assert found.analogy("man", "woman", "king", 1)[0][0] == "queen"
  assert found.analogy("king", "man", "queen", 1)[0][0] == "woman"


# Of FNV's authors; beyond ASCII, of fastText, which extends the sign of bytes.
HASHES = {
  "a": 0xE40C292C,
  "foobar": 0xBF9CF968,
  "<wh": 0x3E79C4E4,
  "naïve": 0xCD16EE2B,
  "数据": 0xB2AA0F15,
}


@pytest.mark.parametrize("text", HASHES)
def test_the_hash_is_that_of_fasttext(text):
  assert subwords.fnv1a(text.encode()) == HASHES[text]


def test_ngrams_are_those_of_the_paper():
  found = subwords.ngrams(subwords.Config(shortest=3, longest=3), "where")
  assert found == ["<wh", "whe", "her", "ere", "re>"]
  one = subwords.Config(shortest=1, longest=2)
  assert subwords.ngrams(one, "né") == ["<n", "n", "né", "é", "é>"]
  with pytest.raises(ValueError, match="shortest=7 is more than"):
    subwords.Config(shortest=7)


def test_a_word_is_its_own_row_and_those_of_its_parts():
  config = subwords.Config(shortest=3, longest=4, n_buckets=11)
  found = subwords.parts(config, ["it", "where"])
  assert found.shape == (2, 1 + 5 + 4)
  assert found[0].tolist()[:4] == [
    0,
    *(2 + subwords.fnv1a(x) % 11 for x in (b"<it", b"<it>", b"it>")),
  ]
  assert set(found[0, 4:]) == {subwords.NONE}
  assert subwords.parts(None, ["it", "where"]).tolist() == [[0], [1]]


def test_an_unseen_word_is_the_mean_of_its_parts():
  config = subwords.Config(shortest=3, longest=3, n_buckets=5)
  buckets = np.float32(RNG.normal(size=(5, 7)))
  found = vectors.Vectors(WORDS, FOUND.table, config, buckets)
  rows = [subwords.fnv1a(x.encode()) % 5 for x in ("<wh", "whe", "he>")]
  np.testing.assert_allclose(found.of("whe"), buckets[rows].mean(0), 1e-6)
  np.testing.assert_array_equal(found.of("the"), FOUND.table[0])
  with pytest.raises(ValueError, match="no vector of 'thw'.*like it: the"):
    FOUND.of("thw")
