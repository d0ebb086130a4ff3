"""The architectures by name, and what is the same for all of them."""

import functools
import inspect
import sys
import typing
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from models import (
  bart,
  bert,
  bigbird,
  bloom,
  deepseek,
  distilbert,
  falcon,
  gemma,
  gpt,
  llama,
  longformer,
  mamba2,
  mixtral,
  mpt,
  neox,
  olmo2,
  opt,
  phi3,
  rnn,
  rnnsearch,
  roberta,
  stablelm,
  t5,
)
from models.layers import heads
from models.layers.embed import Biased
from models.weights import Weight, einsum
from sharding import rules

FAMILIES: dict[str, type] = {
  "llama": llama.Config,
  "gpt": gpt.Config,
  "mixtral": mixtral.Config,
  "deepseek": deepseek.Config,
  "gemma": gemma.Config,
  "olmo2": olmo2.Config,
  "phi3": phi3.Config,
  "stablelm": stablelm.Config,
  "neox": neox.Config,
  "opt": opt.Config,
  "bloom": bloom.Config,
  "mpt": mpt.Config,
  "falcon": falcon.Config,
  "mamba2": mamba2.Config,
  "rnn": rnn.Config,
  "rnnsearch": rnnsearch.Config,
  "bert": bert.Config,
  "roberta": roberta.Config,
  "distilbert": distilbert.Config,
  "longformer": longformer.Config,
  "bigbird": bigbird.Config,
  "t5": t5.Config,
  "bart": bart.Config,
}

Config = Any  # one of FAMILIES
Params = Any  # a pytree of Weight


def build(config: Config) -> nn.Module:
  """The module of a config; all its state is in the parameters."""
  return sys.modules[type(config).__module__].Model(config)


def name(config: Config) -> str:
  """The family's name in FAMILIES."""
  return next(n for n, family in FAMILIES.items() if family is type(config))


def reads(config: Config, what: str) -> bool:
  """Whether the family reads such a thing beside the tokens.

  Args:
    config: of a family.
    what: "source": another text, whole; "prefix": how much of its own text
      every token sees.
  """
  if what == "prefix" and "state" in config.pattern:
    return False  # what was read is summed up in order
  return what in inspect.signature(build(config).__call__).parameters


def init(config: Config, key: Array) -> Params:
  """Initial fp32 parameters, the same on every mesh."""
  return meta.unbox(_boxed(config, key))


def abstract(config: Config) -> Params:
  """Shapes and types of the parameters; nothing is computed."""
  return meta.unbox(_shapes(config))


def axes(config: Config) -> Params:
  """The logical axis names of every parameter, a tuple of names each."""
  return jax.tree.map(
    lambda box: box.names,
    _shapes(config),
    is_leaf=lambda x: isinstance(x, meta.AxisMetadata),
  )


@functools.cache
def _shapes(config: Config) -> Params:
  with rules.nowhere():
    return jax.eval_shape(lambda: _boxed(config, jax.random.key(0)))


def _boxed(config: Config, key: Array) -> Params:
  one = jnp.zeros((1, 1), jnp.int32)
  source = {"source": (one, one, one)} if reads(config, "source") else {}
  params = build(config).init(key, one, one, one, **source)["params"]
  if kinds(config):
    hidden, made = jnp.zeros((1, 1, config.d_model)), {}
    for kind in kinds(config):
      made |= _head(config).init(key, hidden, kind)["params"]
    params["heads"] = made
  return params


def is_causal(config: Config) -> bool:
  """Whether a token sees those before it alone."""
  return getattr(config, "causal", True)


def writes(config: Config) -> bool:
  """Whether the model says which token comes next."""
  return is_causal(config) and not kinds(config)


def kinds(config: Config) -> tuple[heads.Kind, ...]:
  """What heads there are beside that of the next token, or in its place."""
  return config.heads.kinds if hasattr(config, "heads") else ()


def head(params: Params) -> Weight | Biased:
  """The output head [V, D]: its own table, or the embedding where tied."""
  table = params.get("head", params["embed"])["table"]
  bias = params.get("heads", {}).get("words_bias")
  return table if bias is None else Biased(table, bias)


def whole_head(config: Config, params: Params) -> Weight | Biased:
  """The head in the type of the computation, whole on each shard of the batch."""

  def whole(w):
    if isinstance(w, Biased):
      return Biased(whole(w.table), rules.gathered(w.bias, "vocab"))
    if isinstance(w, Array):
      w = rules.gathered(w.astype(config.dtype), "vocab", "embed")
    return w

  return whole(head(params))


def answers(config: Config) -> bool:
  """Whether a head of the model knows labels, which no pretraining taught it."""
  return not {*kinds(config)}.isdisjoint(("texts", "tokens"))


def asked(
  config: Config,
  params: Params,
  kind: heads.Kind,
  hidden: Float[Array, "B T D"],
  key: Array | None = None,
) -> Float[Array, "B T W"]:
  """What one of `config.heads` says of every token; see models/layers/heads.py.

  Of "words" it is what the table is compared with: `logits` does. A key drops
  out.

  Raises:
    ValueError: the model has no such head.
  """
  if kind not in kinds(config):
    raise ValueError(
      f"the model has no head {kind!r}, but {', '.join(kinds(config)) or 'none'}"
      ": name it in model.heads.kinds."
    )
  return _head(config).apply(
    {"params": params["heads"]},
    hidden,
    kind,
    key is None,
    rngs=None if key is None else {"dropout": key},
  )


def of_texts(
  config: Config,
  params: Params,
  hidden: Float[Array, "B T D"],
  positions: Int[Array, "B T"],
  segment_ids: Int[Array, "B T"],
  key: Array | None = None,
) -> Float[Array, "B T W"]:
  """What the head of texts says, at the first token of each; else as `asked`.

  Where a token sees those before it alone, it is what the last one says.
  """
  scores = asked(config, params, "texts", hidden, key)
  if is_causal(config):
    scores = heads.last(scores, positions, segment_ids)
  return scores


def logits(
  config: Config, params: Params, hidden: Float[Array, "B T D"]
) -> Float[Array, "B T V"]:
  """Scores of the words, fp32; training never holds them all at once.

  A decoder's are of the next token, an encoder's of the token itself.
  """
  if not writes(config):
    hidden = asked(config, params, "words", hidden)
  return score(scoring(config), hidden, head(params))


class Scoring(typing.NamedTuple):
  """How hidden states and the head become logits."""

  dtype: jnp.dtype  # of the product
  softcap: float | None = None  # logits become softcap * tanh(logits / softcap)


def scoring(config: Config) -> Scoring:
  """That of a config."""
  cap = getattr(config, "final_softcap", None)
  return Scoring(jnp.dtype(config.dtype), cap)


def score(
  how: Scoring, hidden: Float[Array, "B T D"], head: Weight | Biased
) -> Float[Array, "B T V"]:
  """The logits, fp32."""
  table = head.table if isinstance(head, Biased) else head
  logits = einsum("BTD,VD->BTV", hidden, table, how.dtype, jnp.float32)
  if isinstance(head, Biased):
    logits += head.bias[None, None]
  if how.softcap is None:
    return logits
  return how.softcap * jnp.tanh(logits / how.softcap)


def _head(config: Config) -> heads.Head | heads.Scores:
  c = config
  if is_causal(c):
    return heads.Scores(c.heads, c.dropout, jnp.dtype(c.dtype))
  return heads.Head(
    c.heads,
    c.activation,
    c.norm_epsilon,
    c.dropout,
    jnp.dtype(c.dtype),
    c.vocab_size,
  )
