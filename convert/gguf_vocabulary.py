"""The tokenizer inside a GGUF file."""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2

from convert import vocabulary
from data import tokenizer as own
from data.tokenizer import Tokenizer

_CONTROL, _USER = 3, 4  # of token_type
_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece
# How the words are parted before pieces are merged, by tokenizer.ggml.pre.
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = {
  "gpt-2": "",
  "smollm": "",  # and every digit by itself
  "llama-bpe": _LLAMA3,
  "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
}


def read(said: Mapping[str, Any]) -> Tokenizer:
  """The tokenizer that the metadata of a file describes.

  Raises:
    ValueError: one that is not known here, or that does not fit itself.
  """
  s = {
    key.removeprefix("tokenizer.ggml."): value for key, value in said.items()
  }
  try:
    tokens, kinds = list(s["tokens"]), [int(k) for k in s["token_type"]]
    kind = s["model"]
  except KeyError as error:
    raise ValueError(
      f"the file lacks tokenizer.ggml.{error.args[0]}."
    ) from error
  if len(set(tokens)) != len(tokens) or len(kinds) != len(tokens):
    raise ValueError(
      f"the file lists {len(tokens)} tokens, {len(set(tokens))} of them "
      f"different, and {len(kinds)} types: it is damaged."
    )
  names = {}
  for key, name in (
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("pad_token", "padding_token_id"),
  ):
    if name in s:
      if not 0 <= s[name] < len(tokens):
        raise ValueError(f"tokenizer.ggml.{name}={s[name]} is no token.")
      names[key] = tokens[s[name]]
  adds = bool(s.get("add_bos_token", kind == "llama"))
  beside = {
    own.SETTINGS: json.dumps(_told(names, kind, adds), indent=1).encode()
  }
  if "tokenizer.chat_template" in s:
    beside["chat_template.jinja"] = s["tokenizer.chat_template"].encode()
  if kind == "gpt2":
    model = _byte_level(s, tokens, kinds)
    if adds:
      bos = names["bos_token"]
      model.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
      )
    return own.make("tokenizer.json", model.to_str().encode(), beside)
  if kind == "llama":
    return own.make("tokenizer.model", _pieces(s, tokens, kinds), beside)
  raise ValueError(
    f"the file has a tokenizer of kind {kind!r}; gpt2 and llama are known here."
  )


def _told(names: dict[str, str], kind: str, adds: bool) -> dict[str, Any]:
  cls = "PreTrainedTokenizerFast" if kind == "gpt2" else "LlamaTokenizer"
  return {
    "tokenizer_class": cls,
    "add_bos_token": adds,
    "clean_up_tokenization_spaces": False,
    **names,
  }


def _byte_level(
  s: Mapping[str, Any], tokens: list[str], kinds: list[int]
) -> tokenizers.Tokenizer:
  words = s.get("pre", "")
  if words not in _WORDS:
    raise ValueError(
      f"the file parts words as {words!r} (tokenizer.ggml.pre); known here are "
      f"{', '.join(_WORDS)}. Another pattern would give other ids."
    )
  merges = [tuple(merge.split(" ")) for merge in s.get("merges", ())]
  if bad := [merge for merge in merges if len(merge) != 2]:
    raise ValueError(f"the file merges {bad[0]}, where pairs should be.")
  vocab = {token: i for i, token in enumerate(tokens)}
  model = vocabulary.byte_level(vocab, merges, _WORDS[words])
  if words == "smollm":
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
      [
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        model.pre_tokenizer,
      ]
    )
  if words == "llama-bpe":
    model.model.ignore_merges = True  # a word that is a token is that token
  if words == "qwen2":
    model.normalizer = tokenizers.normalizers.NFC()
  for kind, add in (
    (_CONTROL, model.add_special_tokens),
    (_USER, model.add_tokens),
  ):
    add(
      [
        tokenizers.AddedToken(t, normalized=False, special=kind == _CONTROL)
        for t, own_kind in zip(tokens, kinds, strict=True)
        if own_kind == kind
      ]
    )
  return model


def _pieces(s: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> bytes:
  """A SentencePiece model: the types of its pieces have the same numbers."""
  scores = [float(x) for x in s.get("scores", ())]
  if len(scores) != len(tokens):
    raise ValueError(f"{len(tokens)} tokens and {len(scores)} scores.")
  proto = sentencepiece_model_pb2.ModelProto()
  for token, score, kind in zip(tokens, scores, kinds, strict=True):
    proto.pieces.add(piece=token, score=score, type=_PIECE.Type.Name(kind))
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  trainer.model_type = trainer.BPE
  trainer.byte_fallback = kinds.count(_PIECE.BYTE) == 256
  trainer.vocab_size = len(tokens)
  for name, key in (
    ("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding"),
  ):  # fmt: skip
    i = s.get(f"{key}_token_id", -1)
    setattr(trainer, f"{name}_id", i)
    if i >= 0:
      setattr(trainer, f"{name}_piece", tokens[i])
  normalizer.name = "identity"
  normalizer.add_dummy_prefix = bool(s.get("add_space_prefix", True))
  normalizer.remove_extra_whitespaces = False
  normalizer.escape_whitespaces = True
  return proto.SerializeToString()
