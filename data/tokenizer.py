"""Text to ids and back: five kinds of tokenizer behind one protocol.

A tokenizer is one file's bytes: they are what is saved, loaded and
fingerprinted. Ids 0, 1, 2 are padding, BOS and EOS in every kind that is
trained here; one of another house comes with a tokenizer_config.json that names
its own. No text ever encodes to them. SentencePiece: 1808.06226. Byte-level
BPE: GPT-2.

All kinds but WordPiece are lossless: decode(encode(text)) == text for every
text that UTF-8 can hold, newlines, tabs and runs of spaces included. WordPiece
(1810.04805, for masked language models) drops control characters, turns every
run of whitespace into one space, sets punctuation and Chinese characters apart,
and reads a word that its pieces cannot spell as [UNK].
"""

import abc
import collections
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, SupportsInt

import numpy as np
import sentencepiece
import tokenizers
from etils import epath
from jaxtyping import Bool, Int

from configs import fields
from configs.ranges import Bytes, Count

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
CONTROLS = ("<pad>", "<s>", "</s>")  # the names of ids 0, 1, 2
SETTINGS = "tokenizer_config.json"  # of one that comes from elsewhere
# What may come with it, and stays with it: nothing here changes an id.
BESIDE = (SETTINGS, "chat_template.jinja", "generation_config.json")
UNKNOWN = "[UNK]"  # WordPiece only; the other kinds spell anything in bytes
Kind = Literal[
  "sentencepiece_unigram",
  "sentencepiece_bpe",
  "tokenizers_bpe",
  "tokenizers_wordpiece",
  "bytes",
  "saved",
]
_BYTES = 3 + 256
_SIZES = {  # kind -> fewest and most ids; SentencePiece has one for unknowns
  "sentencepiece_unigram": (_BYTES + 1, math.inf),
  "sentencepiece_bpe": (_BYTES + 1, math.inf),
  "tokenizers_bpe": (_BYTES, math.inf),
  "bytes": (_BYTES, _BYTES),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which tokenizer to train, or `kind="saved"` and where it lies."""

  kind: Kind = "sentencepiece_bpe"  # "saved" reads `path`, others are trained
  vocab_size: Count = 4096  # ids, the controls and single bytes included
  path: str = ""  # folder with tokenizer.*, of kind "saved" only
  sample_bytes: Bytes = 4_000_000  # text to train on, drawn over all documents
  spanning: bool = False  # pieces may span spaces (SuperBPE, 2503.13423)

  def __post_init__(self):
    fields.check(self)
    if (self.kind == "saved") != bool(self.path):
      raise ValueError(
        f"tokenizer.path={self.path!r} with tokenizer.kind={self.kind!r}: a"
        ' path names a trained tokenizer and goes with kind="saved" only.'
      )
    if self.spanning and not self.kind.startswith("sentencepiece"):
      raise ValueError(
        f"tokenizer.spanning=True with tokenizer.kind={self.kind!r}: only the"
        " sentencepiece kinds have pieces that span spaces."
      )
    least, most = _SIZES.get(self.kind, (1, math.inf))
    if not least <= self.vocab_size <= most:
      raise ValueError(
        f"tokenizer.vocab_size={self.vocab_size} with tokenizer.kind="
        f"{self.kind!r}: controls and bytes make it {least}"
        f"{'' if least == most else ' or more'}."
      )


class Tokenizer(abc.ABC):
  """What every kind can do. No text encodes to pad_id, bos_id or eos_id.

  Args:
    blob: the file that defines it.
    beside: name -> bytes of what came with it; see BESIDE.
  """

  filename: ClassVar[str]  # of the one file that defines it
  pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID
  start: tuple[int, ...] = (BOS_ID,)  # what a prompt begins with

  def __init__(self, blob: bytes, beside: Mapping[str, bytes] | None = None):
    self.blob = blob
    self.beside = dict(beside or {})

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of what defines the tokenizer, in hex."""
    made_of = self.filename.encode() + self.blob
    if SETTINGS in self.beside:
      made_of += repr((self.pad_id, self.bos_id, self.eos_id)).encode()
    return hashlib.sha256(made_of).hexdigest()

  def save(self, folder: epath.PathLike) -> None:
    """Writes the tokenizer's one file, and what came with it."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in {self.filename: self.blob, **self.beside}.items():
      (folder / name).write_bytes(raw)

  def prompt(self, text: str) -> list[int]:
    """The ids that a model continues a text from; never none."""
    return [*self.start, *self.encode(text)] or [self.bos_id]

  def whole(self, text: str) -> list[int]:
    """A text that an encoder reads, or that is written about one, and its end.

    It begins as the house does from which the tokenizer came; ours with nothing.
    """
    start = self.start if SETTINGS in self.beside else ()
    return [*start, *self.encode(text), self.eos_id]

  @functools.cached_property
  def end_ids(self) -> list[int]:
    """The ids that end a text: EOS, and what generation_config.json adds."""
    ends = self._told("generation_config.json").get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({self.eos_id, *(i for i in ends if isinstance(i, int))})

  def _told(self, name: str) -> dict[str, Any]:
    """What a file of BESIDE says; nothing where it did not come."""
    return json.loads(self.beside.get(name, b"{}"))

  @property
  @abc.abstractmethod
  def vocab_size(self) -> int:
    """Ids are 0 to vocab_size - 1."""

  @functools.cached_property
  @abc.abstractmethod
  def token_bytes(self) -> Int[np.ndarray, "V"]:
    """UTF-8 bytes that each id stands for; 0 for controls.

    For a lossless kind they sum to the length of the encoded text.
    """

  @functools.cached_property
  def word_edges(self) -> Bool[np.ndarray, "2 V"]:
    """Whether an id begins within a word, and whether one may go on behind it.

    Two tokens in a row are of one word where the first may go on and the second
    begins within.
    """

    def is_word(character: str) -> bool:
      return character.isalnum() or character in ("_", "\ufffd")

    pieces = self._pieces
    return np.array(
      [
        [bool(piece) and is_word(piece[0]) for piece in pieces],
        [bool(piece) and is_word(piece[-1]) for piece in pieces],
      ]
    )

  @property
  @abc.abstractmethod
  def _pieces(self) -> list[str]:
    """What each id writes; nothing for controls, U+FFFD for half a character."""

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """The ids of a text, without BOS and EOS."""

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Encodes many texts, on all cores."""

  @abc.abstractmethod
  def decode(self, ids: Iterable[SupportsInt]) -> str:
    """The text of ids; controls are silent, broken UTF-8 becomes U+FFFD."""


class _Bytes(Tokenizer):
  """Byte b is id b + 3; nothing to train."""

  filename = "tokenizer.bytes"
  vocab_size = len(CONTROLS) + 256

  def __init__(self, blob: bytes = b"pad bos eos 00-ff\n", beside=None):
    super().__init__(blob, beside)

  @functools.cached_property
  def token_bytes(self) -> Int[np.ndarray, "V"]:
    return np.array([0] * len(CONTROLS) + [1] * 256, np.int32)

  @property
  def _pieces(self) -> list[str]:
    return ["" for _ in CONTROLS] + [_character(byte) for byte in range(256)]

  def encode(self, text: str) -> list[int]:
    raw = np.frombuffer(text.encode(), np.uint8)
    return (raw.astype(np.int32) + len(CONTROLS)).tolist()

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[SupportsInt]) -> str:
    first = len(CONTROLS)
    raw = bytes(int(i) - first for i in ids if int(i) >= first)
    return raw.decode(errors="replace")


class _SentencePiece(Tokenizer):
  """Unigram or BPE pieces with byte fallback; spaces are written as U+2581."""

  filename = "tokenizer.model"

  def __init__(self, blob: bytes, beside: Mapping[str, bytes] | None = None):
    super().__init__(blob, beside)
    self._model = model = sentencepiece.SentencePieceProcessor(model_proto=blob)
    self._is_foreign = SETTINGS in self.beside
    if self._is_foreign:
      found = model.pad_id(), model.bos_id(), model.eos_id()
      self.pad_id, self.bos_id, self.eos_id = _whole(*found)
      adds = self._told(SETTINGS).get("add_bos_token", True)
      self.start = (model.bos_id(),) if adds and model.bos_id() >= 0 else ()
    # A U+2581 of the text itself would come back as a space: spell it.
    self._space_mark = [
      self._model.piece_to_id(f"<0x{byte:02X}>") for byte in "\u2581".encode()
    ]

  @property
  def vocab_size(self) -> int:
    return self._model.vocab_size()

  @functools.cached_property
  def token_bytes(self) -> Int[np.ndarray, "V"]:
    model = self._model
    sizes = np.zeros(self.vocab_size, np.int32)
    for i in range(self.vocab_size):
      if model.is_byte(i):
        sizes[i] = 1
      elif not (model.is_control(i) or model.is_unknown(i)):
        sizes[i] = len(model.id_to_piece(i).replace("\u2581", " ").encode())
    return sizes

  @property
  def _pieces(self) -> list[str]:
    def piece(i):
      if self._model.is_byte(i):
        return _character(int(self._model.id_to_piece(i)[1:-1], 16))
      if self._model.is_control(i) or self._model.is_unknown(i):
        return ""
      return self._model.id_to_piece(i).replace("\u2581", " ")

    return [piece(i) for i in range(self.vocab_size)]

  def encode(self, text: str) -> list[int]:
    if self._is_foreign:  # there U+2581 in a text is a space
      return self._model.encode(text)
    first, *rest = text.split("\u2581")
    ids = self._model.encode(first)
    for part in rest:
      ids += self._space_mark + self._model.encode(part)
    return ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    batch = self._model.encode(list(texts), num_threads=os.cpu_count())
    for i, text in enumerate(texts):
      if "\u2581" in text and not self._is_foreign:
        batch[i] = self.encode(text)
    return batch

  def decode(self, ids: Iterable[SupportsInt]) -> str:
    return self._model.decode([int(i) for i in ids])


class _HuggingFace(Tokenizer):
  """A tokenizer.json: byte-level BPE or WordPiece; any kind from elsewhere."""

  filename = "tokenizer.json"

  def __init__(self, blob: bytes, beside: Mapping[str, bytes] | None = None):
    super().__init__(blob, beside)
    self._model = tokenizers.Tokenizer.from_str(blob.decode())
    self._model.encode_special_tokens = True  # "<s>" in a text is text
    self._model.no_truncation()
    self._model.no_padding()
    if SETTINGS in self.beside:
      self._take_their_ids()
      return
    found = tuple(self._model.token_to_id(name) for name in CONTROLS)
    if found != (PAD_ID, BOS_ID, EOS_ID):
      raise ValueError(
        f"{self.filename} has ids {found} for {CONTROLS}; this house needs"
        f" {(PAD_ID, BOS_ID, EOS_ID)}. Train one with data.train_tokenizer, or"
        f" put the {SETTINGS} beside it that names others."
      )

  def _take_their_ids(self) -> None:
    said = self._told(SETTINGS)
    found = []
    for key in ("pad_token", "bos_token", "eos_token"):
      name = said.get(key)
      name = name.get("content") if isinstance(name, dict) else name
      i = None if name is None else self._model.token_to_id(name)
      if name is not None and i is None:
        raise ValueError(
          f"{SETTINGS} says {key}={name!r}, which {self.filename} lacks."
        )
      found.append(-1 if i is None else i)
    self.pad_id, self.bos_id, self.eos_id = _whole(*found)
    plain = self.encode("a")
    full = self._model.encode("a", add_special_tokens=True).ids
    n = next(i for i in range(len(full)) if full[i:][: len(plain)] == plain)
    self.start = tuple(full[:n])

  @functools.cached_property  # the dict takes tens of ms, and each text asks
  def vocab_size(self) -> int:
    return 1 + max(self._model.get_vocab().values())

  @functools.cached_property
  def token_bytes(self) -> Int[np.ndarray, "V"]:
    decoder = repr(json.loads(self.blob).get("decoder"))
    added = self._model.get_added_tokens_decoder()
    sizes = np.zeros(self.vocab_size, np.int32)
    for piece, i in self._model.get_vocab().items():
      if i in added:
        is_text = not (added[i].special or piece in CONTROLS)
        sizes[i] = len(piece.encode()) if is_text else 0
      elif "ByteLevel" in decoder:  # which writes each byte as one character
        sizes[i] = len(piece)
      elif re.fullmatch("<0x[0-9A-F]{2}>", piece):
        sizes[i] = 1
      elif piece not in (UNKNOWN, "<unk>"):
        is_marked = "\u2581" in decoder
        text = (
          piece.replace("\u2581", " ")
          if is_marked
          else piece.removeprefix("##")
        )
        sizes[i] = len(text.encode())
    return sizes

  @property
  def _pieces(self) -> list[str]:
    if isinstance(self._model.model, tokenizers.models.BPE):
      return [self.decode([i]) for i in range(self.vocab_size)]
    names = [self._model.id_to_token(i) for i in range(self.vocab_size)]
    return [
      ""
      if name in CONTROLS
      else name.removeprefix("##")
      # What does not continue a word begins one, whatever is before it.
      if name.startswith("##")
      else f" {name}"
      for name in names
    ]

  def encode(self, text: str) -> list[int]:
    return self._model.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    batch = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in batch]

  def decode(self, ids: Iterable[SupportsInt]) -> str:
    return self._model.decode([int(i) for i in ids], skip_special_tokens=True)


_KINDS = {k.filename: k for k in (_SentencePiece, _HuggingFace, _Bytes)}
FILES = tuple(_KINDS)


def make(
  filename: str, blob: bytes, beside: Mapping[str, bytes] | None = None
) -> Tokenizer:
  """A tokenizer from its one file, which is called so, and what is beside it."""
  return _KINDS[filename](blob, beside)


def _character(byte: int) -> str:
  return chr(byte) if byte < 128 else "\ufffd"


def load(folder: epath.PathLike) -> Tokenizer:
  """Loads the tokenizer.* of a checkpoint, a store or a working directory."""
  for name in _KINDS:
    path = epath.Path(folder) / name
    if path.exists():
      near = {name: path.parent / name for name in BESIDE}
      beside = {n: p.read_bytes() for n, p in near.items() if p.exists()}
      return make(name, path.read_bytes(), beside)
  raise ValueError(
    f"{os.fspath(folder)} holds no tokenizer.model, tokenizer.json or"
    " tokenizer.bytes: train one with data.train_tokenizer, or name the folder"
    " of another."
  )


def _whole(pad: int, bos: int, eos: int) -> tuple[int, int, int]:
  """The three ids, where some of another house's may be absent (-1).

  Raises:
    ValueError: there is no EOS.
  """
  if eos < 0:
    raise ValueError(f"{SETTINGS} names no eos_token: no text would end.")
  return (eos if pad < 0 else pad, eos if bos < 0 else bos, eos)


def train(config: Config, texts: Iterable[str]) -> Tokenizer:
  """Trains what the config asks for; kind "saved" is loaded instead.

  The result depends on the texts and the config only, not on the machine.

  Raises:
    ValueError: if the result has not config.vocab_size ids.
  """
  if config.kind == "saved":
    tokenizer = load(config.path)
  elif config.kind == "bytes":
    tokenizer = _Bytes()
  elif config.kind.startswith("sentencepiece"):
    tokenizer = _train_sentencepiece(config, texts)
  elif config.kind == "tokenizers_bpe":
    tokenizer = _train_bpe(config, texts)
  else:
    tokenizer = _train_wordpiece(config, texts)
  if tokenizer.vocab_size != config.vocab_size:
    raise ValueError(
      f"tokenizer.vocab_size={config.vocab_size}, but tokenizer.kind="
      f"{config.kind!r} gives {tokenizer.vocab_size} ids here. Set"
      f" tokenizer.vocab_size={tokenizer.vocab_size}, or train on more text."
    )
  return tokenizer


def _train_sentencepiece(
  config: Config, texts: Iterable[str]
) -> _SentencePiece:
  blob = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_passages(texts),
      model_writer=blob,
      model_type=config.kind.removeprefix("sentencepiece_"),
      vocab_size=config.vocab_size,
      hard_vocab_limit=False,  # `train` says it in words
      pad_id=PAD_ID,
      bos_id=BOS_ID,
      eos_id=EOS_ID,
      unk_id=len(CONTROLS),
      # Lossless: the text as it is, and bytes for what no piece spells.
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      byte_fallback=True,
      split_digits=True,
      split_by_whitespace=not config.spanning,
      max_sentence_length=1 << 20,
      num_threads=16,  # fixed: sums over threads must not follow the machine
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(
      f"sentencepiece cannot train {config.vocab_size} ids (tokenizer."
      f"vocab_size) on this text: {str(error).splitlines()[-1]}"
    ) from error
  return _SentencePiece(blob.getvalue())


def _train_bpe(config: Config, texts: Iterable[str]) -> _HuggingFace:
  # A word with the sign before it | one digit | signs with the newlines and
  # the indentation after them | blank lines and indentation | spaces. No
  # letter is ever followed by ">" in one match: no merge can spell "</s>".
  words = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*[ ]*"
    r"|\s*[\r\n]+[ ]*|\s+(?!\S)|\s+"
  )
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
      tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
      ),
    ]
  )
  model.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=config.vocab_size,
    special_tokens=list(CONTROLS),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  model.train_from_iterator(texts, trainer)
  return _HuggingFace(model.to_str().encode())


def _train_wordpiece(config: Config, texts: Iterable[str]) -> _HuggingFace:
  texts = list(texts)

  def blank(**vocab) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(
      tokenizers.models.WordPiece(unk_token=UNKNOWN, **vocab)
    )
    model.normalizer = tokenizers.normalizers.BertNormalizer(
      lowercase=False, strip_accents=False
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.decoder = tokenizers.decoders.WordPiece(prefix="##", cleanup=False)
    return model

  # The trainer meets continued letters in the order of a hash table, another
  # one in each run. Named up front as special tokens they keep one order.
  letters = collections.Counter(itertools.chain.from_iterable(texts))
  continued = [f"##{c}" for c, _ in letters.most_common(1000)]
  specials = [*CONTROLS, UNKNOWN]
  trainer = tokenizers.trainers.WordPieceTrainer(
    vocab_size=config.vocab_size,
    special_tokens=specials + sorted(continued),
    show_progress=False,
  )
  scratch = blank()
  scratch.train_from_iterator(texts, trainer)
  model = blank(vocab=scratch.get_vocab())
  model.add_special_tokens(specials)
  return _HuggingFace(model.to_str().encode())


def _passages(texts: Iterable[str], size: int = 2_000) -> Iterator[str]:
  """Cuts texts after a line's end near `size` characters.

  SentencePiece counts positions in 16 bits. Whole lines would hide what
  follows a newline from it.
  """
  for text in texts:
    start = 0
    while start < len(text):
      end = text.find("\n", start + size, start + 2 * size) + 1
      end = end or start + 2 * size
      yield text[start:end]
      start = end
