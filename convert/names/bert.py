"""BERT, and what the names of its kin have in common."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from convert.names.row import Row, linear
from convert.settings import Settings, agree
from models import bert
from models.layers import heads

KINDS = {
  "bert": (
    "BertModel",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
  )
}
ASKED = {  # the end of a class's name -> its heads; the first that fits
  "DistilBertModel": (),
  "Model": ("pooled",),
  "ForMaskedLM": ("words",),
  "ForPreTraining": ("words", "texts"),
  "ForSequenceClassification": ("texts",),
  "ForTokenClassification": ("tokens",),
  "ForQuestionAnswering": ("spans",),
}
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_tanh": "gelu_new",
  "relu": "relu",
  "silu": "silu",
}


def rows(config: bert.Config) -> tuple[Row, ...]:
  """Which tensor of theirs is which of ours."""
  named = architecture(config, KINDS["bert"])
  prefix = "" if named == "BertModel" else "bert."
  is_pair = "words" in config.heads.kinds
  return (
    *body(prefix),
    *predictions(),
    *affine(f"{prefix}pooler.dense", "heads/pooled"),
    *affine("cls.seq_relationship" if is_pair else "classifier", "heads/texts"),
    *labels(),
  )


def body(prefix: str) -> tuple[Row, ...]:
  """Embeddings and layers, as most of BERT's kin call them."""
  theirs, ours = f"{prefix}encoder.layer.{{i}}.", "stack/layer_{i}/"
  inner = theirs + "attention.self."
  tables = {
    "word_embeddings": "embed",
    "position_embeddings": "position",
    "token_type_embeddings": "type",
  }
  return (
    *[
      Row(f"{prefix}embeddings.{hf}.weight", (f"{name}/table",), 1)
      for hf, name in tables.items()
    ],
    *norm(f"{prefix}embeddings.LayerNorm", "norm"),
    *attention({x: inner + y for x, y in zip("qkv", PARTS, strict=True)}),
    *projected(theirs + "attention.output.dense", ours + "attention/o", 2),
    *norm(theirs + "attention.output.LayerNorm", ours + "attention_norm"),
    *projected(theirs + "intermediate.dense", ours + "mlp/up"),
    *projected(theirs + "output.dense", ours + "mlp/down"),
    *norm(theirs + "output.LayerNorm", ours + "mlp_norm"),
  )


PARTS = ("query", "key", "value")


def attention(theirs: Mapping[str, str]) -> tuple[Row, ...]:
  """Projections of queries, keys and values."""
  ours = "stack/layer_{i}/attention/"
  return sum((projected(hf, ours + x) for x, hf in theirs.items()), ())


def projected(theirs: str, ours: str, n_in: int = 1) -> tuple[Row, ...]:
  """A Linear whose bias lies beside the matrix."""
  return linear(theirs, ours, n_in), Row(f"{theirs}.bias", (f"{ours}_bias",))


def affine(theirs: str, ours: str) -> tuple[Row, ...]:
  """A Linear of a head."""
  return linear(theirs, f"{ours}/w"), Row(f"{theirs}.bias", (f"{ours}/bias",))


def norm(theirs: str, ours: str) -> tuple[Row, ...]:
  """A LayerNorm."""
  return (
    Row(f"{theirs}.weight", (f"{ours}/scale",)),
    Row(f"{theirs}.bias", (f"{ours}/bias",)),
  )


def predictions() -> tuple[Row, ...]:
  """BERT's head for words."""
  transform = "cls.predictions.transform."
  return (
    *words(transform + "dense", "cls.predictions"),
    *norm(transform + "LayerNorm", "heads/words_norm"),
  )


def words(dense: str, bias: str) -> tuple[Row, ...]:
  """What is compared with the table, and the bias of every word."""
  return (
    *affine(dense, "heads/words"),
    Row(f"{bias}.bias", ("heads/words_bias",)),
  )


def labels() -> tuple[Row, ...]:
  """Heads that look at tokens."""
  return (
    *affine("classifier", "heads/tokens"),
    *affine("qa_outputs", "heads/spans"),
  )


def architecture(config: bert.Config, classes: tuple[str, ...]) -> str:
  """The class of theirs that has the heads of ours.

  Raises:
    ValueError: there is none.
  """
  for name in classes:
    if asked(name) == config.heads.kinds:
      return name
  raise ValueError(
    f"heads.kinds={config.heads.kinds} are those of none of transformers' "
    f"{', '.join(classes)}."
  )


def asked(architecture: str) -> tuple[heads.Kind, ...]:
  """The heads of a class of theirs."""
  return next(
    kinds for end, kinds in ASKED.items() if architecture.endswith(end)
  )


def common(
  config: bert.Config, kind: str, *classes: str, pooling: str = "tanh"
) -> dict[str, Any]:
  """The keys that most of BERT's kin have."""
  c = config
  agree(kind, c.heads, pooling=pooling)
  if c.heads.kinds == ASKED["ForPreTraining"]:
    agree(f"{kind} with a head for pairs of texts", c.heads, n_labels=2)
  return {
    "architectures": [architecture(c, classes)],
    "model_type": kind,
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_hidden_layers": c.n_layers,
    "num_attention_heads": c.n_heads,
    "intermediate_size": c.d_ff,
    "hidden_act": ACTIVATIONS[c.activation],
    "max_position_embeddings": c.first_position + c.max_length,
    "type_vocab_size": c.n_types,
    "layer_norm_eps": c.norm_epsilon,
    "num_labels": c.heads.n_labels,
    "tie_word_embeddings": True,
  }


def theirs(config: bert.Config) -> dict[str, Any]:
  """The keys of config.json."""
  return common(config, "bert", *KINDS["bert"])


def ours(s: Settings) -> bert.Config:
  """The way back."""
  return read(s, bert.Config, KINDS["bert"])


def read(
  s: Settings,
  cls: type,
  classes: tuple[str, ...],
  *,
  vocab_size: int = 30_522,
  length: int = 512,
  act: str = "gelu",
  **more: Any,
) -> Any:
  """The keys of `common` as a config of ours.

  Args:
    s: what is read.
    cls: our Config.
    classes: theirs; the first one where the file names none.
    vocab_size: where the file says none.
    length: the same.
    act: the same.
    **more: further fields of ours.
  """
  s.expect("position_embedding_type", "absolute")
  s.expect("tie_word_embeddings", True)
  s.expect("add_cross_attention", False)
  length = s.take("max_position_embeddings", length)
  return cls(
    vocab_size=s.take("vocab_size", vocab_size),
    max_length=length - cls.first_position,
    d_model=s.take("hidden_size", 768),
    n_layers=s.take("num_hidden_layers", 12),
    n_heads=s.take("num_attention_heads", 12),
    d_ff=s.take("intermediate_size", 3072),
    n_types=s.take("type_vocab_size", 2),
    norm_epsilon=s.take("layer_norm_eps", 1e-12),
    activation=activation(s, "hidden_act", act),
    heads=asked_for(s, classes),
    **more,
  )


def pooled_by(config: Any, pooling: str) -> Any:
  """The config whose texts are pooled in another way than BERT's."""
  changed = dataclasses.replace(config.heads, pooling=pooling)
  return dataclasses.replace(config, heads=changed)


def asked_for(s: Settings, classes: tuple[str, ...]) -> heads.Config:
  """The heads that a file asks for; BERT's way of pooling."""
  (name,) = s.take("architectures", None) or classes[:1]
  named = s.take("id2label", None) or {}
  n_labels = s.take("num_labels", None) or len(named) or 2
  has_labels = {*asked(name)} & {"texts", "tokens"}
  return heads.Config(kinds=asked(name), n_labels=n_labels if has_labels else 2)


def activation(s: Settings, key: str, default: str) -> str:
  """Our name of an activation."""
  names = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
  names["gelu_pytorch_tanh"] = "gelu_tanh"
  return names[s.expect(key, ACTIVATIONS[default], *names)]
