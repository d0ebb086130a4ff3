"""Streamed text is the decoded text, and ends where a stop string does."""

import io

import hypothesis
import pytest
import sentencepiece
from hypothesis import strategies as st

from data import tokenizer as tokenizers
from serve.text import Text

CORPUS = [
  "def naïve(x):\n    return 'größer' if x > 10 else \"kleiner\"\n" * 3,
  "The quick brown fox jumps over the lazy dog, 日本語のテキスト 🙂 again.\n"
  * 3,
]
SIZES = {
  "bytes": 259,
  "sentencepiece_bpe": 330,
  "sentencepiece_unigram": 314,
  "tokenizers_bpe": 280,
  "tokenizers_wordpiece": 104,
}


def train(kind: str) -> tokenizers.Tokenizer:
  config = tokenizers.Config(kind=kind, vocab_size=SIZES[kind])
  return tokenizers.train(config, CORPUS)


def foreign(folder) -> tokenizers.Tokenizer:
  """As Llama's: a space is set before the text, and is not decoded."""
  blob = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_writer=blob,
    model_type="bpe",
    vocab_size=330,
    byte_fallback=True,
    minloglevel=2,
  )
  (folder / "tokenizer.model").write_bytes(blob.getvalue())
  return tokenizers.load(folder)


@pytest.fixture(scope="module", params=[*SIZES, "foreign"])
def tokenizer(request, tmp_path_factory):
  if request.param == "foreign":
    return foreign(tmp_path_factory.mktemp("tokenizer"))
  return train(request.param)


def streamed(tokenizer, ids, stop=()) -> list[str]:
  text = Text(tokenizer, stop)
  pieces = []
  for i in ids:
    pieces.append(text.push(i))
    if text.ended:
      break
  return [*pieces, text.finish()]


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(data=st.data())
def test_pieces_join_to_the_decoded_text(tokenizer, data):
  any_id = st.integers(0, tokenizer.vocab_size - 1)
  ids = data.draw(st.lists(any_id, max_size=80))
  assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_silent_ids_leave_no_mark(tokenizer):
  word = tokenizer.encode(" dog")
  ids = word + [tokenizer.eos_id] * 40 + word
  assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(text=st.text("ab🙂é日 \n", max_size=60))
def test_no_piece_of_a_text_is_broken(tokenizer, text):
  ids = tokenizer.encode(text)
  pieces = streamed(tokenizer, ids)
  assert "".join(pieces) == tokenizer.decode(ids)
  assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_at_once_and_a_character_when_it_is_whole():
  tokenizer = train("bytes")
  pieces = streamed(tokenizer, tokenizer.encode("a🙂é!"))
  assert pieces == ["a", "", "", "", "🙂", "", "é", "!", ""]


def test_bytes_that_are_no_text_are_held_for_three_ids_at_most():
  pieces = streamed(train("bytes"), [3 + 0xFF] * 50)
  assert "".join(pieces) == "\ufffd" * 50
  assert pieces[-1] == "\ufffd" * 3


def cut(text: str, stops) -> str:
  """Character by character: the first stop string to be complete ends it."""
  for end in range(len(text) + 1):
    met = [s for s in stops if text[:end].endswith(s)]
    if met:
      return text[: end - max(map(len, met))]
  return text


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
  text=st.text("ab🙂 ", max_size=40),
  stops=st.lists(st.text("ab🙂 ", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_across_tokens(tokenizer, text, stops):
  ids = tokenizer.encode(text)
  pieces = streamed(tokenizer, ids, stops)
  assert "".join(pieces) == cut(tokenizer.decode(ids), stops)


def test_what_may_begin_a_stop_string_is_held_back():
  tokenizer = train("bytes")
  pieces = streamed(tokenizer, tokenizer.encode("x</se </s>y"), ["</s>"])
  assert pieces == ["x", "", "", "", "</se", " ", "", "", "", "", ""]
