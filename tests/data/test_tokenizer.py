"""Text comes back as it was, controls cannot be spelt, training repeats."""

import inspect
import json
import json.decoder
import random
import string

import hypothesis
import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import strategies as st

from data import tokenizer

TRAINED = {
  "sentencepiece_unigram": 420,
  "sentencepiece_bpe": 420,
  "tokenizers_bpe": 420,
  "tokenizers_wordpiece": 420,
}
LOSSLESS = [*list(TRAINED)[:-1], "spanning", "bytes"]
# Names that some tokenizer somewhere takes for a control, and its own marks.
HOSTILE = [
  "<s>", "</s>", "<pad>", "<unk>", "[UNK]", "<0x41>", "\u2581", "\u2585", "##a",
  "\u0120", "\n", "\t", "\r", " ", "  ", "\x00", "\x1b", "\u2028", "\ufeff",
  "\ufffd", "e\u0301", "\u00e9", "\U0001f642",
]  # fmt: skip
CODE = [inspect.getsource(json.decoder)]
any_text = st.lists(
  st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8)), max_size=8
).map("".join)


def train(name: str, texts: list[str]) -> tokenizer.Tokenizer:
  if name == "bytes":
    return tokenizer.train(tokenizer.Config(kind="bytes", vocab_size=259), [])
  kind = "sentencepiece_bpe" if name == "spanning" else name
  config = tokenizer.Config(
    kind=kind, vocab_size=TRAINED[kind], spanning=name == "spanning"
  )
  return tokenizer.train(config, texts)


@pytest.fixture(scope="module")
def learned(texts):
  """Trained on text that offers every control as a frequent word."""
  texts = texts + CODE + ["<s>abc</s><pad> " * 20 + string.printable]
  names = [*TRAINED, "spanning", "bytes"]
  return {name: train(name, texts) for name in names}


@pytest.mark.parametrize("name", LOSSLESS)
@hypothesis.given(text=any_text)
@hypothesis.settings(max_examples=300, deadline=None)
def test_text_comes_back_as_it_was(learned, name, text):
  ids = learned[name].encode(text)
  assert learned[name].decode(ids) == text
  assert learned[name].token_bytes[ids].sum() == len(text.encode())
  assert learned[name].encode_batch(["a", text]) == [
    learned[name].encode("a"),
    ids,
  ]


@pytest.mark.parametrize("name", [*TRAINED, "spanning", "bytes"])
@hypothesis.given(text=any_text)
@hypothesis.settings(max_examples=100, deadline=None)
def test_text_cannot_spell_a_control(learned, name, text):
  ids = learned[name].encode(text)
  assert not {0, 1, 2} & set(ids)
  assert all(0 <= i < learned[name].vocab_size for i in ids)


@pytest.mark.parametrize("name", [*TRAINED, "spanning", "bytes"])
def test_controls_are_silent_and_have_no_bytes(learned, name):
  it = learned[name]
  assert (it.pad_id, it.bos_id, it.eos_id) == (0, 1, 2)
  assert it.decode([1, *it.encode("a b"), 2, 0]) == "a b"
  assert it.token_bytes.shape == (it.vocab_size,)
  assert it.token_bytes.dtype == np.int32
  assert not it.token_bytes[:3].any()


@pytest.mark.parametrize("name", [*TRAINED, "spanning", "bytes"])
def test_a_saved_tokenizer_is_the_same(learned, name, tmp_path, texts):
  learned[name].save(tmp_path)
  loaded = tokenizer.load(tmp_path)
  assert loaded.fingerprint == learned[name].fingerprint
  assert loaded.encode_batch(texts) == learned[name].encode_batch(texts)


@pytest.mark.parametrize("name", [*TRAINED, "spanning"])
def test_training_repeats(learned, name, texts):
  texts = texts[:20] + CODE
  once, again = train(name, texts), train(name, iter(texts))
  assert once.fingerprint == again.fingerprint
  assert once.fingerprint != learned[name].fingerprint


@pytest.fixture(scope="module")
def multilingual() -> list[str]:
  """10,000 strings of many scripts, signs and accents."""
  rng = random.Random(0)
  blocks = [
    (0x20, 0x7E), (0xA1, 0x17F), (0x300, 0x36F), (0x391, 0x3C9), (0x410, 0x44F),
    (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x939), (0xE01, 0xE3A),
    (0x1100, 0x1112), (0x3041, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
    (0x1F300, 0x1F64F), (0x2000, 0x206F),
  ]  # fmt: skip

  def word() -> str:
    block = rng.choice(blocks)
    return "".join(chr(rng.randint(*block)) for _ in range(rng.randint(1, 9)))

  return [
    rng.choice([" ", "  ", "\n", "\t"]).join(word() for _ in range(4))
    for _ in range(10_000)
  ]


@pytest.mark.parametrize("name", [*TRAINED, "spanning"])
def test_ids_are_those_of_the_library_itself(
  learned, name, tmp_path, multilingual
):
  """D15: whoever opens the file elsewhere reads the same ids."""
  learned[name].save(tmp_path)
  ids = learned[name].encode_batch(multilingual)
  if name.startswith("tokenizers"):
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    truth = [x.ids for x in library.encode_batch(multilingual)]
  else:
    library = sentencepiece.SentencePieceProcessor()
    library.load(str(tmp_path / "tokenizer.model"))
    truth = [library.encode_as_ids(text) for text in multilingual]
  assert ids == truth
  if name in LOSSLESS:
    assert [learned[name].decode(x) for x in ids] == multilingual


def test_every_kind_has_its_own_fingerprint(learned):
  prints = {it.fingerprint for it in learned.values()}
  assert len(prints) == len(learned)
  assert all(len(p) == 64 for p in prints)


def test_bytes_are_utf8_plus_three(learned):
  assert learned["bytes"].encode("aé\n") == [100, 198, 172, 13]


def test_no_merge_spells_a_control(learned):
  """The trainer would give a merge that reads "</s>" the control's id."""
  model = json.loads(learned["tokenizers_bpe"].blob)["model"]
  spelt = {"".join(merge) for merge in model["merges"]}
  assert spelt and not spelt & set(tokenizer.CONTROLS)


@pytest.mark.parametrize(
  "name", ["sentencepiece_unigram", "sentencepiece_bpe", "tokenizers_bpe"]
)
def test_newlines_and_indentation_share_few_ids(learned, name):
  lines = "\n        x\n\n        x\n"
  assert len(learned[name].encode(lines)) <= 10  # of 22 bytes
  assert any(
    "\n" in (piece := learned[name].decode([i])) and len(piece) > 1
    for i in range(learned[name].vocab_size)
  )


def test_spanning_pieces_hold_a_space_inside():
  def inside(name):
    it = train(name, ["if x is not None:\n" * 200, *CODE])
    pieces = [it.decode([i]).strip() for i in range(it.vocab_size)]
    return [piece for piece in pieces if " " in piece]

  assert not inside("sentencepiece_bpe")
  assert "is not" in " ".join(inside("spanning"))


def test_wordpiece_loses_whitespace_and_unknown_words_only(learned):
  it = learned["tokenizers_wordpiece"]
  assert it.decode(it.encode("def  self\n\treturn")) == "def self return"
  assert it.decode(it.encode("def ζ")) == "def"  # [UNK] is silent
  assert it.encode("ζ") == [3]
  ids = it.encode("def self return")
  assert it.token_bytes[ids].sum() == len("defselfreturn")


def test_a_saved_kind_reads_its_path(learned, tmp_path):
  learned["spanning"].save(tmp_path)
  config = tokenizer.Config(kind="saved", path=str(tmp_path), vocab_size=420)
  loaded = tokenizer.train(config, [])
  assert loaded.fingerprint == learned["spanning"].fingerprint


@pytest.mark.parametrize(
  "settings, says",
  [
    (dict(kind="saved"), "goes with kind"),
    (dict(path="somewhere"), "goes with kind"),
    (dict(kind="bytes", spanning=True), "only the sentencepiece kinds"),
    (dict(sample_bytes=0), "sample_bytes=0"),
    (dict(kind="bytes"), "vocab_size=4096.* make it 259."),
    (dict(vocab_size=100), "vocab_size=100.* make it 260 or more."),
  ],
)
def test_settings_that_cannot_be_meant(settings, says):
  with pytest.raises(ValueError, match=says):
    tokenizer.Config(**settings)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_vocabulary_that_the_text_cannot_fill(kind, texts):
  config = tokenizer.Config(kind=kind, vocab_size=50_000)
  with pytest.raises(ValueError, match="Set tokenizer.vocab_size="):
    tokenizer.train(config, texts[:20])


def test_a_folder_without_a_tokenizer(tmp_path):
  with pytest.raises(ValueError, match="holds no tokenizer"):
    tokenizer.load(tmp_path)


def test_a_tokenizer_with_other_controls_is_refused(tmp_path, learned):
  learned["tokenizers_bpe"].save(tmp_path)
  path = tmp_path / "tokenizer.json"
  path.write_text(path.read_text().replace("<pad>", "<other>"))
  with pytest.raises(ValueError, match="this house needs"):
    tokenizer.load(tmp_path)
