"""X3: llama.cpp's files: blocks, headers, tokenizers, whole models."""

import pathlib
import string
import struct

import hypothesis
import numpy as np
import pytest
from etils import epath
from hypothesis import strategies as st

from benchmarks.parity import cases
from convert import blocks, container, gguf, tensors
from data import tokenizer as tokenizers
from models import checkpoint
from tests.convert.test_hf import assert_same

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "blocks.npz"
TOKENS = ["<unk>", "<s>", "</s>", "\u2581", *string.ascii_letters[:44]]


@pytest.mark.parametrize("code", blocks.KINDS)
@np.errstate(all="ignore")  # random bits make infinite scales, too
def test_blocks_are_unpacked_as_their_library_does(code):
  kind = blocks.KINDS[code]
  with np.load(GOLDEN, allow_pickle=False) as stored:
    packed, numbers = (stored[f"{kind.name}/{x}"] for x in ("bytes", "numbers"))
  found = kind.unpack(packed)
  assert found.shape == (2, kind.n_numbers) and found.dtype == np.float32
  np.testing.assert_array_equal(found, numbers)


def text(s):
  raw = s.encode()
  return struct.pack("<Q", len(raw)) + raw


def value(x):
  """The type and the bytes of a value."""
  if isinstance(x, bool):
    return struct.pack("<I?", 7, x)
  if isinstance(x, int):
    return struct.pack("<Ii", 5, x)
  if isinstance(x, float):
    return struct.pack("<If", 6, x)
  if isinstance(x, str):
    return struct.pack("<I", 8) + text(x)
  inner = value(x[0])[:4]
  return (
    struct.pack("<I", 9)
    + inner
    + struct.pack("<Q", len(x))
    + b"".join(value(item)[4:] for item in x)
  )


def write(path, said, arrays):
  """A file of float32, by the description of the format."""
  infos, data = b"", b""
  for name, x in arrays.items():
    dims = struct.pack(f"<{x.ndim}Q", *reversed(x.shape))
    infos += text(name) + struct.pack("<I", x.ndim) + dims
    infos += struct.pack("<IQ", 0, len(data))
    data += x.astype("<f4").tobytes()
    data += b"\0" * (-len(data) % 32)
  head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(said))
  head += b"".join(text(key) + value(x) for key, x in said.items()) + infos
  head += b"\0" * (-len(head) % 32)
  path.write_bytes(head + data)
  return epath.Path(path)


def metadata(kind):
  c = cases.CASES[{"llama": "llama", "qwen2": "qwen2"}[kind]]
  return {
    "general.architecture": kind,
    f"{kind}.block_count": c.n_layers,
    f"{kind}.context_length": c.max_length,
    f"{kind}.embedding_length": c.d_model,
    f"{kind}.feed_forward_length": c.d_ff,
    f"{kind}.attention.head_count": c.n_heads,
    f"{kind}.attention.head_count_kv": c.n_kv_heads,
    f"{kind}.attention.layer_norm_rms_epsilon": c.norm_epsilon,
    f"{kind}.rope.freq_base": c.rope_theta,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.scores": [-float(i) for i in range(len(TOKENS))],
    "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 45],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": "{{ messages }}",
  }


def permuted(x, n_heads):
  """How llama.cpp's converter lays the rows of queries and keys."""
  half = x.shape[0] // n_heads // 2
  return (
    x.reshape(n_heads, 2, half, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
  )


def model(kind):
  config = cases.CASES[kind]
  theirs = tensors.to_theirs(config, cases.params(config))
  names = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "lm_head": "output", "model.layers.": "blk.",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
  }  # fmt: skip
  arrays = {}
  for name, x in theirs.items():
    for old, new in names.items():
      name = name.replace(old, new)
    if kind == "llama" and "attn_q." in name:
      x = permuted(x, config.n_heads)
    if kind == "llama" and "attn_k." in name:
      x = permuted(x, config.n_kv_heads)
    arrays[name] = x
  return config, arrays


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_model_comes_in_to_the_bit(kind, tmp_path):
  config, arrays = model(kind)
  file = write(tmp_path / "x.gguf", metadata(kind), arrays)
  found = gguf.take(file, epath.Path(tmp_path / "ours"))
  assert_same(tmp_path / "ours", cases.params(config))
  assert found == checkpoint.config(epath.Path(tmp_path / "ours"))
  assert (found.rope_theta, found.norm_epsilon) == (1e4, config.norm_epsilon)
  tokenizer = tokenizers.load(tmp_path / "ours")
  assert tokenizer.start == (1,) and tokenizer.end_ids == [2]
  template = (tmp_path / "ours" / "chat_template.jinja").read_text()
  assert tokenizer.encode("ab") == [3, 4, 5]
  assert tokenizer.decode([1, 3, 4, 5, 2]) == "ab"
  assert template == "{{ messages }}"


@pytest.fixture
def file(tmp_path):
  _, arrays = model("llama")
  said = {k: v for k, v in metadata("llama").items() if "token" not in k}
  return write(tmp_path / "x.gguf", said, arrays)


def test_every_cut_of_a_header_is_found(file):
  whole = file.read_bytes()
  said, found = container.read(file)
  first = min(t.start for t in found.values())
  for n in [*range(0, first, 9), len(whole) - 40]:
    file.write_bytes(whole[:n])
    with pytest.raises(ValueError):
      container.read(file)


@hypothesis.given(data=st.data())
@hypothesis.settings(
  max_examples=300,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_damaged_headers_are_refused_or_read_within_the_file(file, data):
  whole = file.read_bytes()
  first = min(t.start for t in container.read(file)[1].values())
  damaged = bytearray(whole)
  for _ in range(data.draw(st.integers(1, 4))):
    place = data.draw(st.integers(0, first - 1))
    damaged[place] = data.draw(st.integers(0, 255))
  file.write_bytes(bytes(damaged))
  try:
    _, found = container.read(file)
  except ValueError:
    pass
  else:
    for tensor in found.values():
      assert tensor.start + tensor.n_bytes <= len(whole)
  file.write_bytes(whole)


def changed(tmp_path, **changes):
  said = metadata("llama")
  _, arrays = model("llama")
  said |= {key.replace("__", "."): x for key, x in changes.items()}
  said = {key: x for key, x in said.items() if x is not None}
  return write(tmp_path / "x.gguf", said, arrays)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"general__architecture": "falcon"}, "'falcon'"),
    ({"llama__expert_count": 8}, "expert_count=8"),
    ({"llama__rope__scaling__type": "longrope"}, "longrope"),
    ({"llama__block_count": 3}, "lack model.layers.2"),
    ({"llama__feed_forward_length": 40}, "not as large"),
    ({"llama__embedding_length": None}, "lacks embedding_length"),
    ({"tokenizer__ggml__model": "bert"}, "kind 'bert'"),
    ({"tokenizer__ggml__scores": [1.0, 2.0]}, "2 scores"),
    ({"tokenizer__ggml__eos_token_id": 99}, "is no token"),
    ({"general__alignment": 33}, "alignment of 33"),
  ],
)
def test_what_is_not_known_is_refused_by_name(changes, words, tmp_path):
  file = changed(tmp_path, **changes)
  with pytest.raises(ValueError, match=words):
    gguf.take(file, epath.Path(tmp_path / "ours"))
  assert not (tmp_path / "ours").exists()
