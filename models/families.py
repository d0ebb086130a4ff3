"""The architectures by name, and what is the same for all of them."""

import inspect
import sys
import typing
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta
from jax import numpy as jnp
from jaxtyping import Array, Float

from models import (
  bart,
  bloom,
  deepseek,
  falcon,
  gemma,
  gpt,
  llama,
  mamba2,
  mixtral,
  mpt,
  neox,
  olmo2,
  opt,
  phi3,
  stablelm,
  t5,
)
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
  return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def axes(config: Config) -> Params:
  """The logical axis names of every parameter, a tuple of names each."""
  boxed = jax.eval_shape(lambda: _boxed(config, jax.random.key(0)))
  return jax.tree.map(
    lambda box: box.names,
    boxed,
    is_leaf=lambda x: isinstance(x, meta.AxisMetadata),
  )


def _boxed(config: Config, key: Array) -> Params:
  one = jnp.zeros((1, 1), jnp.int32)
  source = {"source": (one, one, one)} if reads(config, "source") else {}
  return build(config).init(key, one, one, one, **source)["params"]


def head(params: Params) -> Weight:
  """The output head [V, D]: its own table, or the embedding where tied."""
  return params.get("head", params["embed"])["table"]


def whole_head(config: Config, params: Params) -> Weight:
  """The head in the type of the computation, whole on each shard of the batch."""
  w = head(params)
  if isinstance(w, Array):
    w = rules.gathered(w.astype(config.dtype), "vocab", "embed")
  return w


def logits(
  config: Config, params: Params, hidden: Float[Array, "B T D"]
) -> Float[Array, "B T V"]:
  """Scores of the next token, fp32; training never holds them all at once."""
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
  how: Scoring, hidden: Float[Array, "B T D"], head: Weight
) -> Float[Array, "B T V"]:
  """The logits, fp32."""
  logits = einsum("BTD,VD->BTV", hidden, head, how.dtype, jnp.float32)
  if how.softcap is None:
    return logits
  return how.softcap * jnp.tanh(logits / how.softcap)
