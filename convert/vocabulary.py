"""Tokenizers of other houses, in and out.

A tokenizer.json is taken as it is. What it does not say, which ids pad, begin
and end, stands in one of several files, and is put into one: the
tokenizer_config.json beside it (data/tokenizer.py).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sentencepiece
import tokenizers
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from data import tokenizer as own
from data.tokenizer import Tokenizer

_KEYS = ("bos_token", "eos_token", "pad_token")
# What BERT's kin call the first and the last token of a text.
_ALSO = {"bos_token": "cls_token", "eos_token": "sep_token"}
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def read(folder: epath.Path, settings: Mapping[str, Any]) -> Tokenizer | None:
  """The tokenizer of a folder of theirs, or None where it has none.

  Args:
    folder: with a tokenizer.json, a SentencePiece model, or the vocabulary and
      merges of GPT-2.
    settings: their config.json, which may name ids.

  Raises:
    ValueError: it is of a kind that we do not have, or names no end of a text.
  """
  there = [name for name in _FILES if (folder / name).exists()]
  if not there:
    return None
  name = there[0]
  if name == "tokenizer.json":
    blob = (folder / name).read_bytes()
    by_id = _model(blob).id_to_token
  elif name == "vocab.json":
    blob = _gpt2(folder, settings)
    by_id = _model(blob).id_to_token
  else:
    blob = (folder / name).read_bytes()
    by_id = _pieces(folder, blob)
  beside = {
    name: (folder / name).read_bytes()
    for name in own.BESIDE
    if (folder / name).exists()
  }
  said = _json(folder, own.SETTINGS)
  names = {**_json(folder, "special_tokens_map.json"), **said}
  for key in _KEYS:
    token = names.get(key)
    number = settings.get(f"{key}_id")
    if token is None and isinstance(number, int):
      token = by_id(number)
    if token is None:
      token = names.get(_ALSO.get(key, ""))
    if token is not None:
      said[key] = token
  beside[own.SETTINGS] = json.dumps(said, indent=1).encode()
  filename = "tokenizer.model" if name.endswith(".model") else "tokenizer.json"
  return own.make(filename, blob, beside)


def write(tokenizer: Tokenizer, folder: epath.Path) -> dict[str, Any]:
  """Writes a tokenizer as theirs; one of ours becomes a tokenizer.json.

  Returns:
    What config.json says of it.
  """
  if own.SETTINGS not in tokenizer.beside:
    tokenizer = _as_theirs(tokenizer)
  tokenizer.save(folder)
  said = json.loads(tokenizer.beside[own.SETTINGS])
  ids = {
    "bos_token_id": tokenizer.bos_id if said.get("bos_token") else None,
    "eos_token_id": tokenizer.eos_id,
    "pad_token_id": tokenizer.pad_id if said.get("pad_token") else None,
  }
  generation = folder / "generation_config.json"
  if not generation.exists():
    generation.write_text(json.dumps(ids, indent=2))
  return ids


def grown(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
  """The same with control tokens behind its last id; no text spells them.

  Raises:
    ValueError: it has one of them, or is of a kind that cannot grow.
  """
  if tokenizer.filename == "tokenizer.json":
    model = _model(tokenizer.blob)
    there = [name for name in names if model.token_to_id(name) is not None]
    model.add_special_tokens(
      [tokenizers.AddedToken(name, normalized=False) for name in names]
    )
    blob = model.to_str().encode()
  elif tokenizer.filename == "tokenizer.model":
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.blob)
    there = [x.piece for x in proto.pieces if x.piece in names]
    for name in names:
      kind = sentencepiece_model_pb2.ModelProto.SentencePiece.CONTROL
      proto.pieces.add(piece=name, score=0.0, type=kind)
    blob = proto.SerializeToString()
  else:
    raise ValueError(
      "a tokenizer of bytes has no names to add: train one of another kind "
      "(data.train_tokenizer)."
    )
  if there:
    raise ValueError(f"the tokenizer has {', '.join(there)} already.")
  return own.make(tokenizer.filename, blob, tokenizer.beside)


def _as_theirs(tokenizer: Tokenizer) -> Tokenizer:
  """One that was trained here, as the library tokenizers has it.

  A U+2581 in a text is a space to theirs, and is itself to ours.
  """
  if tokenizer.filename == "tokenizer.model":
    model = _from_pieces(tokenizer.blob)
  elif tokenizer.filename == "tokenizer.json":
    model = _model(tokenizer.blob)
  else:
    letters = _letters_of_bytes()
    vocab = {name: i for i, name in enumerate(own.CONTROLS)}
    first = len(vocab)
    vocab |= {letter: first + b for b, letter in enumerate(letters)}
    model = byte_level(vocab, [])
  model.add_special_tokens(
    [tokenizers.AddedToken(x, normalized=False) for x in own.CONTROLS]
  )
  bos = own.CONTROLS[own.BOS_ID]
  model.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{bos} $A",
    pair=f"{bos} $A {bos} $B",
    special_tokens=[(bos, own.BOS_ID)],
  )
  names = dict(
    zip(("pad_token", "bos_token", "eos_token"), own.CONTROLS, strict=True)
  )
  said = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    **names,
  }
  beside = {
    **tokenizer.beside,
    own.SETTINGS: json.dumps(said, indent=1).encode(),
  }
  return own.make("tokenizer.json", model.to_str().encode(), beside)


def _letters_of_bytes() -> list[str]:
  """The character that byte-level BPE writes for each byte (GPT-2)."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = (b for b in range(256) if b not in plain)
  letters = {b: chr(b) for b in plain}
  letters |= {b: chr(256 + i) for i, b in enumerate(rest)}
  return [letters[b] for b in range(256)]


def _from_pieces(blob: bytes) -> tokenizers.Tokenizer:
  model = sentencepiece.SentencePieceProcessor(model_proto=blob)
  scored = [
    (model.id_to_piece(i), model.get_score(i))
    for i in range(model.vocab_size())
  ]
  unknown = model.unk_id()
  proto = sentencepiece_model_pb2.ModelProto.FromString(blob)
  if proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM:
    made = tokenizers.Tokenizer(
      tokenizers.models.Unigram(scored, unknown, byte_fallback=True)
    )
  else:
    vocab = {piece: i for i, (piece, _) in enumerate(scored)}
    made = tokenizers.Tokenizer(
      tokenizers.models.BPE(
        vocab=vocab,
        merges=merges_of(scored),
        unk_token=scored[unknown][0],
        byte_fallback=True,
      )
    )
  made.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
  made.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace("\u2581", " "),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
    ]
  )
  return made


def merges_of(scored: list[tuple[str, float]]) -> list[tuple[str, str]]:
  """The merges of a SentencePiece BPE, whose pieces have their rank as score."""
  order = {piece: i for i, (piece, _) in enumerate(scored)}
  merges = []
  for piece, score in scored:
    pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
    merges += [
      (-score, order[left], order[right], (left, right))
      for left, right in pairs
      if left in order and right in order
    ]
  return [pair for *_, pair in sorted(merges)]


def _json(folder: epath.Path, name: str) -> dict[str, Any]:
  if not (folder / name).exists():
    return {}
  try:
    return dict(json.loads((folder / name).read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(f"{folder / name} is no JSON object: {error}.") from error


def _model(blob: bytes) -> tokenizers.Tokenizer:
  try:
    return tokenizers.Tokenizer.from_str(blob.decode())
  except Exception as error:  # the library raises nothing more precise
    raise ValueError(f"tokenizer.json cannot be read: {error}.") from error


def _pieces(folder: epath.Path, blob: bytes):
  try:
    model = sentencepiece.SentencePieceProcessor(model_proto=blob)
  except RuntimeError as error:
    raise ValueError(f"tokenizer.model cannot be read: {error}") from error
  n = model.vocab_size()
  added = _json(folder, own.SETTINGS).get("added_tokens_decoder", {})
  if beyond := [int(i) for i in added if int(i) >= n]:
    raise ValueError(
      f"{folder} adds {len(beyond)} tokens to the {n} of its SentencePiece "
      "model. Take a folder with a tokenizer.json, which holds all of them."
    )
  return lambda i: model.id_to_piece(i) if 0 <= i < n else None


def byte_level(
  vocab: Mapping[str, int], merges: list[tuple[str, str]], words: str = ""
) -> tokenizers.Tokenizer:
  """Byte-level BPE as GPT-2 has it; `words` is another pattern of its words."""
  model = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=dict(vocab), merges=merges)
  )
  parts = tokenizers.pre_tokenizers
  split = [parts.ByteLevel(add_prefix_space=False, use_regex=not words)]
  if words:
    split.insert(0, parts.Split(tokenizers.Regex(words), "isolated"))
  model.pre_tokenizer = parts.Sequence(split)
  model.decoder = tokenizers.decoders.ByteLevel()
  return model


def _gpt2(folder: epath.Path, settings: Mapping[str, Any]) -> bytes:
  if (
    settings.get("model_type") != "gpt2" or not (folder / "merges.txt").exists()
  ):
    raise ValueError(
      f"{folder} has vocab.json, which says how to merge letters and not how to "
      "part words; that is known of GPT-2 only. Take a folder with a "
      "tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...)."
    )
  lines = (folder / "merges.txt").read_text().splitlines()
  merges = [tuple(line.split(" ")) for line in lines if line[:8] != "#version"]
  vocab = _json(folder, "vocab.json")
  model = byte_level(vocab, [pair for pair in merges if len(pair) == 2])
  model.add_special_tokens(["<|endoftext|>"])
  return model.to_str().encode()
