"""Rotary positions in a config.json, as two generations of it spell them.

Now: `rope_parameters`, with the theta inside. Before: `rope_theta` beside
`rope_scaling`, whose kind is called `type` or `rope_type`.
"""

import math
from typing import Any

from configs import fields
from convert.settings import Settings
from models.layers.position import Scaling


def theirs(
  theta: float,
  scaling: Scaling | None,
  length: int,
  share: float | None = None,
) -> dict[str, Any]:
  """Our rotary settings as theirs, for texts of `length` tokens.

  `share` is of a head's dimensions, that turn, where they can say it.

  Dynamic scaling calls its trained length max_position_embeddings; how far a
  model was meant to go it does not say.
  """
  parameters = {"rope_theta": theta, "rope_type": "default"}
  if share is not None:
    parameters["partial_rotary_factor"] = share
  if scaling is None:
    return {"rope_parameters": parameters, "max_position_embeddings": length}
  s = scaling
  parameters |= {"rope_type": s.kind, "factor": s.factor}
  if s.kind == "dynamic":
    return {
      "rope_parameters": parameters,
      "max_position_embeddings": s.original_length,
    }
  if s.kind == "yarn":
    low, high = s.turns
    parameters |= {
      "beta_slow": low,
      "beta_fast": high,
      "attention_factor": s.attention_factor,
    }
  if s.kind == "llama3":
    low, high = s.turns
    parameters |= {"low_freq_factor": low, "high_freq_factor": high}
  if s.kind == "longrope":
    parameters |= {
      "short_factor": list(s.short),
      "long_factor": list(s.long),
      "attention_factor": s.attention_factor,
    }
  if s.original_length is not None:
    parameters["original_max_position_embeddings"] = s.original_length
  return {"rope_parameters": parameters, "max_position_embeddings": length}


def parameters(s: Settings) -> Settings:
  """The keys of either spelling; take further ones from here."""
  old, new = s.nested("rope_scaling"), s.nested("rope_parameters")
  return old if s.take("rope_scaling", None) else new


def ours(
  s: Settings,
  *,
  theta: float = 10_000.0,
  length: int = 2048,
  share: float | None = None,
  p: Settings | None = None,
) -> dict[str, Any]:
  """Theirs as the fields rope_theta, rope_scaling and max_length of ours.

  Args:
    s: their config.json.
    theta: their default of the base.
    length: their default of the longest text.
    share: their default of the dimensions that turn, where they can say it:
      then rotary_share is a field too.
    p: where the keys of the scaling are; None: where they are found.

  Raises:
    ValueError: a kind of scaling that we do not have.
  """
  p = parameters(s) if p is None else p
  outside = s.take("rope_theta", theta)
  most = s.take("max_position_embeddings", length)
  found = {
    "rope_theta": float(p.take("rope_theta", outside)),
    "max_length": most,
  }
  if share is not None:
    share = p.take(
      "partial_rotary_factor", s.take("partial_rotary_factor", share)
    )
    found["rotary_share"] = float(share)
  kind = p.take("rope_type", p.take("type", "default"))
  if kind == "default":
    return found
  if kind not in ("linear", "dynamic", "yarn", "llama3", "longrope"):
    raise ValueError(
      f"config.json asks for rotary positions of kind {kind!r}. There are "
      "default, linear, dynamic, yarn, llama3 and longrope."
    )
  if share is None:
    p.expect("partial_rotary_factor", 1.0, 1)
  scaling = {"kind": kind, "factor": p.take("factor", None)}
  if kind == "dynamic":
    scaling["original_length"] = most
    found["max_length"] = int(most * scaling["factor"])
  elif kind != "linear":
    # Where it stands beside the others, as in Phi 3, that is the one that holds.
    original = p.take("original_max_position_embeddings", most)
    original = s.take("original_max_position_embeddings", original)
    scaling["original_length"] = original
  if kind == "llama3":
    scaling["low"] = p.take("low_freq_factor")
    scaling["high"] = p.take("high_freq_factor")
  if kind == "longrope":
    scaling["factor"] = scaling["factor"] or max(most / original, 1.0)
    scaling["short"] = tuple(map(float, p.take("short_factor")))
    scaling["long"] = tuple(map(float, p.take("long_factor")))
    scaling["attention_factor"] = p.take("attention_factor", None)
  if kind == "yarn":
    p.expect("truncate", True)
    scaling["low"] = p.take("beta_slow", None)
    scaling["high"] = p.take("beta_fast", None)
    if scaling["factor"] is None:
      scaling["factor"] = most / original
    scaling["attention_factor"] = p.take("attention_factor", None)
    grown = [
      0.1 * scale * math.log(scaling["factor"]) + 1.0
      for scale in (p.take("mscale", None), p.take("mscale_all_dim", None))
      if scale
    ]
    if scaling["attention_factor"] is None and len(grown) == 2:
      scaling["attention_factor"] = grown[0] / grown[1]
  return {
    **found,
    "rope_scaling": fields.make(Scaling, scaling, "rope_scaling"),
  }
