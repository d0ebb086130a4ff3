"""MPT."""

from typing import Any

from convert import settings
from convert.names.row import Row, linear
from convert.settings import Settings
from models import mpt

_THEIRS = "transformer.blocks.{i}."
_OURS = "stack/layer_{i}/"
_QKV = tuple(f"{_OURS}attention/{x}" for x in "qkv")
ROWS = (
  Row("transformer.wte.weight", ("embed/table",), 1),
  Row("transformer.norm_f.weight", ("norm/scale",)),
  Row(_THEIRS + "norm_1.weight", (_OURS + "attention_norm/scale",)),
  Row(_THEIRS + "norm_2.weight", (_OURS + "mlp_norm/scale",)),
  Row(_THEIRS + "attn.Wqkv.weight", _QKV, 1, transposed=True),
  linear(_THEIRS + "attn.out_proj", _OURS + "attention/o", 2),
  linear(_THEIRS + "ffn.up_proj", _OURS + "mlp/up"),
  linear(_THEIRS + "ffn.down_proj", _OURS + "mlp/down"),
)
KINDS = {"mpt": ("MptForCausalLM",)}


def theirs(config: mpt.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: their architecture has other sizes.
  """
  c = config
  fixed = dict(d_ff=4 * c.d_model, activation="gelu", norm_epsilon=1e-5)
  settings.agree("mpt", c, **fixed)
  return {
    "architectures": [*KINDS["mpt"]],
    "model_type": "mpt",
    "vocab_size": c.vocab_size,
    "d_model": c.d_model,
    "n_layers": c.n_layers,
    "n_heads": c.n_heads,
    "expansion_ratio": 4,
    "max_seq_len": c.max_length,
    "layer_norm_epsilon": c.norm_epsilon,
    "learned_pos_emb": True,
    "no_bias": True,
    "attn_config": {"alibi": True},
    "tie_word_embeddings": True,
  }


def ours(s: Settings) -> mpt.Config:
  """The way back.

  Whether there are learned positions, they do not look at: with ALiBi there are
  none.
  """
  attention = s.nested("attn_config")
  attention.expect("alibi", True)
  attention.expect("alibi_bias_max", 8)
  attention.expect("attn_type", "multihead_attention")
  for key in ("clip_qkv", "softmax_scale"):
    attention.expect(key, None)
  for key in (
    "prefix_lm", "qk_ln", "attn_uses_sequence_id", "is_encoder_decoder",
  ):  # fmt: skip
    attention.expect(key, False)
  for key in ("attn_impl", "attn_pdrop", "model_type"):
    attention.take(key, None)
  s.expect("no_bias", True)
  s.expect("expansion_ratio", 4)
  s.expect("logit_scale", None)
  s.expect("tie_word_embeddings", True)
  for key in (  # of how it was trained
    "init_device",
    "init_config",
    "embedding_fraction",
    "emb_pdrop",
    "learned_pos_emb",
    "norm_type",
    "verbose",
    "tokenizer_name",
  ):
    s.take(key, None)
  d_model = s.take("d_model", 2048)
  return mpt.Config(
    vocab_size=s.take("vocab_size", 50_368),
    max_length=s.take("max_seq_len", 2048),
    d_model=d_model,
    n_layers=s.take("n_layers", 24),
    n_heads=s.take("n_heads", 16),
    d_ff=4 * d_model,
    norm_epsilon=s.take("layer_norm_epsilon", 1e-5),
  )
