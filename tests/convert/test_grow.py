"""A vocabulary grows, and what it knew it knows to the bit: F9."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from jax import numpy as jnp

from convert import bundle, grow, tensors
from data import tokenizer as tokenizers
from models import arrays, card, checkpoint, families, llama, manifest

TEXT = ["the quick brown fox jumps over the lazy dog <|im_end|> " * 40]
NEW = ("<|im_start|>", "<|im_end|>")


def made(folder, kind, tied, vocab_size):
  """A checkpoint of a tiny model."""
  size = {"sentencepiece_bpe": 300, "tokenizers_bpe": 280}[kind]
  config = tokenizers.Config(kind=kind, vocab_size=size)
  tokenizer = tokenizers.train(config, TEXT)
  model = llama.Config(
    vocab_size=vocab_size,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    d_head=8,
    d_ff=32,
    max_length=32,
    dtype="float32",
    tied=tied,
  )
  params = families.init(model, jax.random.key(0))
  flat = arrays.by_path(params)
  path = epath.Path(folder) / "base"
  (path / "params").mkdir(parents=True)
  shapes = tensors.shapes(model)
  sink = arrays.Sink(path / "params", shapes, {})
  for name, x in flat.items():
    sink.write(name, (), np.asarray(x))
  tokenizer.save(path)
  settings = bundle.page(path, model, tokenizer)
  (path / "config.json").write_text(json.dumps(settings))
  (path / "card.json").write_text(json.dumps(card.make(0, None, None, {})))
  manifest.seal(path)
  return path


@pytest.mark.parametrize(
  ("kind", "tied", "vocab_size", "expected"),
  [
    ("sentencepiece_bpe", True, 300, 320),
    ("tokenizers_bpe", False, 280, 320),
    ("tokenizers_bpe", True, 300, 300),  # there are rows to spare
  ],
)
def test_old_rows_keep_their_bits_and_new_ones_are_sane(
  tmp_path, kind, tied, vocab_size, expected
):
  path = made(tmp_path, kind, tied, vocab_size)
  out = epath.Path(tmp_path) / "grown"
  assert grow.grow(path, out, NEW) == expected
  assert manifest.verify(out) is None
  old, new = tokenizers.load(path), tokenizers.load(out)
  n = old.vocab_size
  assert new.vocab_size == n + 2
  was, now = (dict(arrays.read(x / "params")) for x in (path, out))
  for name in was:
    if "table" not in name:
      np.testing.assert_array_equal(was[name], now[name])
      continue
    np.testing.assert_array_equal(was[name][:n], now[name][:n])
    assert len(now[name]) == expected
    mean = was[name][:n].mean(0)
    np.testing.assert_allclose(
      now[name][n:], mean[None].repeat(expected - n, 0), atol=1e-7
    )
  # What it says to old text is what it said, and new words are not likelier.
  ids = jnp.asarray([old.encode("the lazy dog")])
  logits = []
  for at in (path, out):
    model, params = checkpoint.load(at)
    hidden, _ = jax.jit(families.build(model).apply)(
      {"params": params},
      ids,
      jnp.arange(ids.shape[1])[None],
      jnp.ones_like(ids),
    )
    logits.append(families.logits(model, params, hidden))
  np.testing.assert_allclose(logits[0][..., :n], logits[1][..., :n], atol=1e-6)
  assert (logits[1][..., n:] <= logits[1][..., :n].max(-1, keepdims=True)).all()


@pytest.mark.parametrize("kind", ["sentencepiece_bpe", "tokenizers_bpe"])
def test_no_text_spells_a_new_token(tmp_path, kind):
  old = tokenizers.load(made(tmp_path, kind, True, 320))
  text = "a <|im_end|><|im_start|> b"
  out = epath.Path(tmp_path) / "grown"
  grow.grow(epath.Path(tmp_path) / "base", out, NEW)
  new = tokenizers.load(out)
  assert new.encode(text) == old.encode(text)
  assert new.decode(new.encode(text)) == text
  with pytest.raises(ValueError, match="has <.im_end.> already"):
    grow.grow(out, epath.Path(tmp_path) / "again", ["<|im_end|>"])
