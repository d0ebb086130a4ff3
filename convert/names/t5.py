"""T5, T5 1.1, FLAN-T5."""

from typing import Any

from convert import settings
from convert.names.row import Row, linear
from convert.settings import Settings
from models import t5


def rows(config: t5.Config) -> tuple[Row, ...]:
  """Which tensor of theirs is which of ours."""
  return (
    Row("shared.weight", ("embed/table",), 1),
    Row("lm_head.weight", ("head/table",), 1),
    *_stack("encoder", "encoder", "encoder_norm", config.gated),
    *_stack("decoder", "stack", "norm", config.gated),
  )


def _stack(theirs: str, stack: str, norm: str, gated: bool) -> tuple[Row, ...]:
  """Of the encoder, or of the decoder."""
  bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  rows = [
    Row(f"{theirs}.{bias}", (f"{theirs}_buckets/table",), 1),
    Row(f"{theirs}.final_layer_norm.weight", (f"{norm}/scale",)),
  ]
  layers = [("SelfAttention", "attention"), ("DenseReluDense", "mlp")]
  if theirs == "decoder":
    layers.insert(1, ("EncDecAttention", "cross"))
  wide = {"wi_0": "gate", "wi_1": "up"} if gated else {"wi": "up"}
  for number, (kind, ours) in enumerate(layers):
    place = f"{theirs}.block.{{i}}.layer.{number}."
    here = f"{stack}/layer_{{i}}/{ours}"
    parts = {**wide, "wo": "down"} if ours == "mlp" else {x: x for x in "qkvo"}
    rows.append(Row(f"{place}layer_norm.weight", (f"{here}_norm/scale",)))
    rows += [
      linear(f"{place}{kind}.{hf}", f"{here}/{x}", 2 if x == "o" else 1)
      for hf, x in parts.items()
    ]
  return tuple(rows)


# Of distances between two texts; nothing ever read it.
UNUSED = (r".*\.EncDecAttention\.relative_attention_bias\.weight",)
KINDS = {"t5": ("T5ForConditionalGeneration",)}
_ACTIVATIONS = {
  "relu": "relu",
  "silu": "silu",
  "gelu": "gelu",
  "gelu_tanh": "gelu_new",
}


def theirs(config: t5.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: theirs means another function by this activation.
  """
  c = config
  if c.gated and c.activation == "gelu":
    # They read "gated-gelu" as the approximation by tanh.
    settings.agree("t5", c, activation="gelu_tanh")
  kind = _ACTIVATIONS[c.activation]
  if c.gated:
    kind = "gated-gelu" if c.activation == "gelu_tanh" else f"gated-{kind}"
  return {
    "architectures": [*KINDS["t5"]],
    "model_type": "t5",
    "vocab_size": c.vocab_size,
    "d_model": c.d_model,
    "d_kv": c.d_head,
    "d_ff": c.d_ff,
    "num_layers": c.n_encoder_layers,
    "num_decoder_layers": c.n_layers,
    "num_heads": c.n_heads,
    "n_positions": c.max_length,
    "relative_attention_num_buckets": c.n_buckets,
    "relative_attention_max_distance": c.farthest,
    "layer_norm_epsilon": c.norm_epsilon,
    "feed_forward_proj": kind,
    "tie_word_embeddings": c.tied,
    "is_encoder_decoder": True,
    "decoder_start_token_id": c.start_id,
    "pad_token_id": 0,
    "eos_token_id": None,
  }


def ours(s: Settings) -> t5.Config:
  """The way back."""
  kind = s.take("feed_forward_proj", "relu")
  names = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
  names |= {f"gated-{theirs}": ours for theirs, ours in names.items()}
  names["gated-gelu"] = "gelu_tanh"
  s.expect("feed_forward_proj", "relu", *names)
  for key in ("dense_act_fn", "is_gated_act"):
    s.take(key, None)  # which follow from the others
  # transformers 5 says of every head that it is tied, and tells those of 1.1 by
  # this: they are their own where their tensor is there, and must be here.
  is_scaled = s.take("scale_decoder_outputs", True)
  s.expect("is_encoder_decoder", True)
  n_layers = s.take("num_layers", 6)
  return t5.Config(
    vocab_size=s.take("vocab_size", 32_128),
    d_model=s.take("d_model", 512),
    d_head=s.take("d_kv", 64),
    d_ff=s.take("d_ff", 2048),
    n_encoder_layers=n_layers,
    n_layers=s.take("num_decoder_layers", None) or n_layers,
    n_heads=s.take("num_heads", 8),
    max_length=s.take("n_positions", 512),
    n_buckets=s.take("relative_attention_num_buckets", 32),
    farthest=s.take("relative_attention_max_distance", 128),
    norm_epsilon=s.take("layer_norm_epsilon", 1e-6),
    activation=names[kind],
    gated=kind.startswith("gated-"),
    tied=s.take("tie_word_embeddings", True) and is_scaled,
    start_id=s.take("decoder_start_token_id", 0),
  )
