"""X1: tokenizers go out and come in again with the same ids."""

import inspect
import json
import json.decoder

import numpy as np
import pytest
import tokenizers as library
from etils import epath

from convert import vocabulary
from data import tokenizer as own

SCRIPTS = [
  (0x20, 0x7F), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF),
  (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE5B), (0x3041, 0x30FF),
  (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (0x300, 0x36F),
]  # fmt: skip
SPACES = [" ", " ", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000"]
KINDS = {
  "sentencepiece_unigram": 420,
  "sentencepiece_bpe": 420,
  "tokenizers_bpe": 420,
  "tokenizers_wordpiece": 420,
  "bytes": 259,
}


def strings(n, seed=0, scripts=SCRIPTS):
  """Words of all scripts, mixed, with every kind of space between them."""
  rng = np.random.default_rng(seed)
  made = []
  for _ in range(n):
    words = []
    for _ in range(rng.integers(0, 8)):
      low, high = scripts[rng.integers(len(scripts))]
      letters = rng.integers(low, high, rng.integers(1, 9))
      words += [*map(chr, letters), SPACES[rng.integers(len(SPACES))]]
    made.append("".join(words))
  return made


@pytest.fixture(scope="module")
def trained():
  texts = [*strings(300, 1, SCRIPTS[:1]), inspect.getsource(json.decoder)]
  return {
    kind: own.train(own.Config(kind=kind, vocab_size=size), texts)
    for kind, size in KINDS.items()
  }


def check(tokenizer, encode, texts):
  ids = tokenizer.encode_batch(texts)
  for text, expected in zip(texts, ids, strict=True):
    assert encode(text) == expected, repr(text)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_same_outside_and_back(kind, trained, tmp_path):
  folder = epath.Path(tmp_path)
  said = vocabulary.write(trained[kind], folder)
  assert said == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
  texts = strings(500)
  outside = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  check(
    trained[kind],
    lambda text: outside.encode(text, add_special_tokens=False).ids,
    texts,
  )
  back = vocabulary.read(folder, {})
  check(trained[kind], back.encode, texts)
  ids = trained[kind].encode_batch(texts)
  for text in ids:
    assert back.decode(text) == trained[kind].decode(text)
  assert back.start == (1,) and back.end_ids == [2]
  np.testing.assert_array_equal(back.token_bytes, trained[kind].token_bytes)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_strings_are_those_of_transformers(
  kind, trained, tmp_path
):
  """D15 beside transformers, which adds BOS as we do."""
  transformers = pytest.importorskip("transformers")
  vocabulary.write(trained[kind], epath.Path(tmp_path))
  (tmp_path / "config.json").write_text('{"model_type": "llama"}')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  texts = strings(10_000, seed=2)
  ids = theirs(texts)["input_ids"]
  for text, expected, inner in zip(
    texts, ids, trained[kind].encode_batch(texts), strict=True
  ):
    assert [1, *inner] == expected, repr(text)
  back = vocabulary.read(epath.Path(tmp_path), {})
  assert [back.prompt(text) for text in texts] == ids


def test_ids_are_found_wherever_a_folder_names_them(trained, tmp_path):
  vocabulary.write(trained["tokenizers_bpe"], epath.Path(tmp_path))
  for name in own.BESIDE:
    (tmp_path / name).unlink(missing_ok=True)
  by_id = vocabulary.read(
    epath.Path(tmp_path), {"bos_token_id": 1, "eos_token_id": 2}
  )
  assert (by_id.bos_id, by_id.eos_id, by_id.pad_id) == (1, 2, 2)
  (tmp_path / "special_tokens_map.json").write_text(
    json.dumps({"eos_token": {"content": "<s>"}})
  )
  assert vocabulary.read(epath.Path(tmp_path), {}).eos_id == 1


def test_what_generation_config_says_ends_a_text(trained, tmp_path):
  vocabulary.write(trained["bytes"], epath.Path(tmp_path))
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
  (tmp_path / "chat_template.jinja").write_text("{{ x }}")
  found = vocabulary.read(epath.Path(tmp_path), {})
  assert found.end_ids == [2, 7]
  found.save(tmp_path / "kept")
  kept = own.load(tmp_path / "kept")
  assert kept.end_ids == [2, 7] and kept.fingerprint == found.fingerprint
  assert (tmp_path / "kept" / "chat_template.jinja").read_text() == "{{ x }}"


@pytest.mark.parametrize(
  "files, words",
  [
    ({"tokenizer.json": "{"}, "tokenizer.json cannot be read"),
    ({"tokenizer.model": "abc"}, "tokenizer.model cannot be read"),
    ({"vocab.json": "{}"}, "how to part words"),
  ],
)
def test_what_cannot_be_read_is_said(files, words, tmp_path):
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=words):
    vocabulary.read(epath.Path(tmp_path), {})


def test_no_end_of_a_text_is_refused(trained, tmp_path):
  trained["tokenizers_bpe"].save(tmp_path)
  with pytest.raises(ValueError, match="no eos_token"):
    vocabulary.read(epath.Path(tmp_path), {})


def test_gpt2s_two_files_are_one_tokenizer(trained, tmp_path):
  saved = json.loads(trained["tokenizers_bpe"].blob)["model"]
  vocab = {**saved["vocab"], "<|endoftext|>": 420}
  (tmp_path / "vocab.json").write_text(json.dumps(vocab))
  merges = [" ".join(pair) for pair in saved["merges"]]
  (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
  settings = {"model_type": "gpt2", "eos_token_id": 420}
  found = vocabulary.read(epath.Path(tmp_path), settings)
  assert (found.bos_id, found.eos_id, found.start) == (420, 420, ())
  for text in strings(100):
    assert found.decode(found.encode(text)) == text
