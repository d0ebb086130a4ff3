"""DistilBERT."""

from typing import Any

from convert.names import bert
from convert.names.row import Row
from convert.settings import Settings, agree
from models import distilbert

KINDS = {
  "distilbert": (
    "DistilBertModel",
    "DistilBertForMaskedLM",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
    "DistilBertForQuestionAnswering",
  )
}


def rows(config: distilbert.Config) -> tuple[Row, ...]:
  """Which tensor of theirs is which of ours."""
  prefix = "distilbert." if config.heads.kinds else ""
  theirs, ours = f"{prefix}transformer.layer.{{i}}.", "stack/layer_{i}/"
  tables = {"word_embeddings": "embed", "position_embeddings": "position"}
  return (
    *[
      Row(f"{prefix}embeddings.{hf}.weight", (f"{name}/table",), 1)
      for hf, name in tables.items()
    ],
    *bert.norm(f"{prefix}embeddings.LayerNorm", "norm"),
    *bert.attention({x: f"{theirs}attention.{x}_lin" for x in "qkv"}),
    *bert.projected(theirs + "attention.out_lin", ours + "attention/o", 2),
    *bert.norm(theirs + "sa_layer_norm", ours + "attention_norm"),
    *bert.projected(theirs + "ffn.lin1", ours + "mlp/up"),
    *bert.projected(theirs + "ffn.lin2", ours + "mlp/down"),
    *bert.norm(theirs + "output_layer_norm", ours + "mlp_norm"),
    *bert.words("vocab_transform", "vocab_projector"),
    *bert.norm("vocab_layer_norm", "heads/words_norm"),
    *bert.affine("pre_classifier", "heads/pooled"),
    *bert.affine("classifier", "heads/texts"),
    *bert.labels(),
  )


def theirs(config: distilbert.Config) -> dict[str, Any]:
  """The keys of config.json."""
  c = config
  agree("distilbert", c, n_types=0, norm_epsilon=1e-12)
  agree("distilbert", c.heads, pooling="relu")
  return {
    "architectures": [bert.architecture(c, KINDS["distilbert"])],
    "model_type": "distilbert",
    "vocab_size": c.vocab_size,
    "dim": c.d_model,
    "n_layers": c.n_layers,
    "n_heads": c.n_heads,
    "hidden_dim": c.d_ff,
    "activation": bert.ACTIVATIONS[c.activation],
    "max_position_embeddings": c.max_length,
    "num_labels": c.heads.n_labels,
    "tie_word_embeddings": True,
  }


def ours(s: Settings) -> distilbert.Config:
  """The way back."""
  s.take("sinusoidal_pos_embds", False)  # how the table of positions began
  s.expect("tie_word_embeddings", True)
  s.expect("tie_weights_", True)
  for key in ("seq_classif_dropout", "qa_dropout"):
    s.take(key, None)
  config = distilbert.Config(
    vocab_size=s.take("vocab_size", 30_522),
    max_length=s.take("max_position_embeddings", 512),
    d_model=s.take("dim", 768),
    n_layers=s.take("n_layers", 6),
    n_heads=s.take("n_heads", 12),
    d_ff=s.take("hidden_dim", 3072),
    activation=bert.activation(s, "activation", "gelu"),
    heads=bert.asked_for(s, KINDS["distilbert"]),
  )
  return bert.pooled_by(config, "relu")
