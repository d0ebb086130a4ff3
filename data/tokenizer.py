"""Text to ids and back: five kinds of tokenizer behind one protocol.

A tokenizer is one file's bytes: they are what is saved, loaded and
fingerprinted. Ids 0, 1, 2 are padding, BOS and EOS in every kind; no text ever
encodes to them. SentencePiece: 1808.06226. Byte-level BPE: GPT-2.

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
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal, SupportsInt

import numpy as np
import sentencepiece
import tokenizers
from etils import epath
from jaxtyping import Bool, Int

from configs import fields
from configs.ranges import Bytes, Count

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
CONTROLS = ("<pad>", "<s>", "</s>")  # the names of ids 0, 1, 2
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
  """What every kind can do. Ids 0, 1 and 2 never come out of `encode`."""

  filename: ClassVar[str]  # of the one file that defines it
  pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID

  def __init__(self, blob: bytes):
    self._blob = blob

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of what defines the tokenizer, in hex."""
    return hashlib.sha256(self.filename.encode() + self._blob).hexdigest()

  def save(self, folder: epath.PathLike) -> None:
    """Writes the tokenizer's one file."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / self.filename).write_bytes(self._blob)

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

  def __init__(self, blob: bytes = b"pad bos eos 00-ff\n"):
    super().__init__(blob)

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

  def __init__(self, blob: bytes):
    super().__init__(blob)
    self._model = sentencepiece.SentencePieceProcessor(model_proto=blob)
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
    first, *rest = text.split("\u2581")
    ids = self._model.encode(first)
    for part in rest:
      ids += self._space_mark + self._model.encode(part)
    return ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    batch = self._model.encode(list(texts), num_threads=os.cpu_count())
    for i, text in enumerate(texts):
      if "\u2581" in text:
        batch[i] = self.encode(text)
    return batch

  def decode(self, ids: Iterable[SupportsInt]) -> str:
    return self._model.decode([int(i) for i in ids])


class _HuggingFace(Tokenizer):
  """A tokenizer.json: byte-level BPE or WordPiece."""

  filename = "tokenizer.json"

  def __init__(self, blob: bytes):
    super().__init__(blob)
    self._model = tokenizers.Tokenizer.from_str(blob.decode())
    self._model.encode_special_tokens = True  # "<s>" in a text is text
    found = tuple(self._model.token_to_id(name) for name in CONTROLS)
    if found != (PAD_ID, BOS_ID, EOS_ID):
      raise ValueError(
        f"{self.filename} has ids {found} for {CONTROLS}; this house needs"
        f" {(PAD_ID, BOS_ID, EOS_ID)}. Train one with data.train_tokenizer."
      )

  @property
  def vocab_size(self) -> int:
    return self._model.get_vocab_size()

  @functools.cached_property
  def token_bytes(self) -> Int[np.ndarray, "V"]:
    in_bytes = isinstance(self._model.model, tokenizers.models.BPE)
    sizes = np.zeros(self.vocab_size, np.int32)
    for piece, i in self._model.get_vocab().items():
      if piece in CONTROLS or piece == UNKNOWN:
        continue
      # Byte-level BPE writes each byte as one character.
      sizes[i] = len(piece if in_bytes else piece.removeprefix("##").encode())
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


def _character(byte: int) -> str:
  return chr(byte) if byte < 128 else "\ufffd"


def load(folder: epath.PathLike) -> Tokenizer:
  """Loads the tokenizer.* of a checkpoint, a store or a working directory."""
  for kind in (_SentencePiece, _HuggingFace, _Bytes):
    path = epath.Path(folder) / kind.filename
    if path.exists():
      return kind(path.read_bytes())
  raise ValueError(
    f"{os.fspath(folder)} holds no tokenizer.model, tokenizer.json or"
    " tokenizer.bytes: train one with data.train_tokenizer, or name the folder"
    " of another."
  )


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
