"""Our parameter tree and the names that `transformers` gives the same numbers.

A row joins one tensor of theirs with one or more of ours, laid side by side:
GPT-2 keeps queries, keys and values in one matrix.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from models import families
from models.layers import stack


@dataclasses.dataclass(frozen=True)
class Row:
  """theirs[out, in] or theirs[in, out] is ours[in..., out...], reshaped."""

  theirs: str
  ours: tuple[str, ...]
  n_in: int = 0  # leading dimensions of ours that are inputs; 0: a vector
  transposed: bool = False
  n_copies: int = 0  # dimensions ahead of those that list whole matrices
  n_common: int = (
    0  # leading outputs, as heads, in which ours are laid together
  )


def _linear(theirs: str, ours: str, n_in: int = 1) -> Row:
  return Row(f"{theirs}.weight", (ours,), n_in, transposed=True)


def _llama() -> tuple[Row, ...]:
  theirs, ours = "model.layers.{i}.", "stack/layer_{i}/"
  attention = ours + "attention/"
  qkv = [(theirs + f"self_attn.{x}_proj", attention + x) for x in "qkv"]
  return (
    Row("model.embed_tokens.weight", ("embed/table",), 1),
    Row("lm_head.weight", ("head/table",), 1),
    Row("model.norm.weight", ("norm/scale",)),
    Row(theirs + "input_layernorm.weight", (ours + "attention_norm/scale",)),
    Row(theirs + "post_attention_layernorm.weight", (ours + "mlp_norm/scale",)),
    *[_linear(*pair) for pair in qkv],
    *[Row(f"{hf}.bias", (f"{name}_bias",)) for hf, name in qkv],
    _linear(theirs + "self_attn.o_proj", attention + "o", 2),
    *[
      Row(
        theirs + f"self_attn.{x}_norm.weight", (attention + f"{x}_norm/scale",)
      )
      for x in "qk"
    ],
    *[
      _linear(theirs + f"mlp.{x}_proj", ours + f"mlp/{x}")
      for x in ("gate", "up", "down")
    ],
  )


def _gpt() -> tuple[Row, ...]:
  theirs, ours = "transformer.h.{i}.", "stack/layer_{i}/"
  attention = ours + "attention/"
  norms = {
    "transformer.ln_f": "norm",
    theirs + "ln_1": ours + "attention_norm",
    theirs + "ln_2": ours + "mlp_norm",
  }
  matrices = {
    "attn.c_attn": ([attention + x for x in "qkv"], 1),
    "attn.c_proj": ([attention + "o"], 2),
    "mlp.c_fc": ([ours + "mlp/up"], 1),
    "mlp.c_proj": ([ours + "mlp/down"], 1),
  }
  return (
    Row("transformer.wte.weight", ("embed/table",), 1),
    Row("transformer.wpe.weight", ("position/table",), 1),
    *[Row(f"{hf}.weight", (f"{name}/scale",)) for hf, name in norms.items()],
    *[Row(f"{hf}.bias", (f"{name}/bias",)) for hf, name in norms.items()],
    *[
      Row(f"{theirs}{hf}.weight", tuple(names), n_in)
      for hf, (names, n_in) in matrices.items()
    ],
    *[
      Row(f"{theirs}{hf}.bias", tuple(f"{name}_bias" for name in names))
      for hf, (names, _) in matrices.items()
    ],
  )


def _mixtral() -> tuple[Row, ...]:
  theirs, ours = "model.layers.{i}.mlp.", "stack/layer_{i}/mlp/"
  wide = (ours + "gate", ours + "up")
  return (
    *[row for row in _llama() if ".mlp." not in row.theirs],
    _linear(theirs + "gate", ours + "router"),
    Row(theirs + "experts.gate_up_proj", wide, 1, True, 1),
    Row(theirs + "experts.down_proj", (ours + "down",), 1, True, 1),
  )


def _deepseek() -> tuple[Row, ...]:
  def of_layer(ours):
    theirs = "model.layers.{i}."
    attn, inner = theirs + "self_attn.", ours + "attention/"
    norms = {
      theirs + "input_layernorm": ours + "attention_norm",
      theirs + "post_attention_layernorm": ours + "mlp_norm",
      attn + "q_a_layernorm": inner + "q_norm",
      attn + "kv_a_layernorm": inner + "kv_norm",
    }
    kv_down = (inner + "kv_down", inner + "k_rotary")
    kv_up = (inner + "k_up", inner + "v_up")
    return (
      *[Row(f"{hf}.weight", (f"{name}/scale",)) for hf, name in norms.items()],
      _linear(attn + "q_proj", inner + "q"),
      _linear(attn + "q_a_proj", inner + "q_down"),
      _linear(attn + "q_b_proj", inner + "q_up"),
      Row(attn + "kv_a_proj_with_mqa.weight", kv_down, 1, True),
      Row(attn + "kv_b_proj.weight", kv_up, 1, True, n_common=1),
      _linear(attn + "o_proj", inner + "o", 2),
      *[
        _linear(f"{theirs}mlp.{hf}{x}_proj", f"{ours}mlp/{name}{x}")
        for x in ("gate", "up", "down")
        for hf, name in (("", ""), ("shared_experts.", "shared/"))
      ],
    )

  theirs, ours = "model.layers.{i}.mlp.", "stack/layer_{j}/mlp/"
  moved = [
    dataclasses.replace(
      row, ours=tuple(name.replace("{i}", "{j}") for name in row.ours)
    )
    for row in _mixtral()
    if ".mlp." in row.theirs
  ]
  return (
    *[row for row in _llama() if "{i}" not in row.theirs],
    *of_layer("dense/layer_{i}/"),
    # Of experts, "gate" and its kind are stacks: other rows say how.
    *[
      row
      for row in of_layer("stack/layer_{j}/")
      if ".mlp." not in row.theirs or "shared" in row.theirs
    ],
    *moved,
    Row(theirs + "gate.e_score_correction_bias", (ours + "bias",)),
  )


TABLES: dict[str, tuple[Row, ...]] = {
  "llama": _llama(),
  "gpt": _gpt(),
  "mixtral": _mixtral(),
  "deepseek": _deepseek(),
}


def to_theirs(
  config: families.Config, params: families.Params
) -> dict[str, np.ndarray]:
  """Our scanned parameters -> their state dict (a tied head is left out)."""
  ours = _flat(
    {
      name: stack.unstack(part) if "layers" in part else part
      for name, part in params.items()
    }
  )
  theirs = {}
  for row in _rows(config, ours):
    parts = [_two_dims(ours[name], row) for name in row.ours]
    joined = np.concatenate(parts, axis=-1)
    joined = joined.reshape(*joined.shape[: joined.ndim - row.n_common - 1], -1)
    theirs[row.theirs] = joined.swapaxes(-1, -2) if row.transposed else joined
  return theirs


def from_theirs(
  config: families.Config, theirs: Mapping[str, np.ndarray]
) -> families.Params:
  """Their state dict -> our scanned parameters; also for gradients."""
  unscanned = dataclasses.replace(config, scanned=False)
  shapes = families.abstract(unscanned)
  leaves = {name: leaf.shape for name, leaf in _flat(shapes).items()}
  ours = {}
  for row in _rows(config, leaves):
    joined = np.asarray(theirs[row.theirs])
    joined = joined.swapaxes(-1, -2) if row.transposed else joined
    n_ahead = row.n_copies + row.n_in
    common = leaves[row.ours[0]][n_ahead : n_ahead + row.n_common]
    joined = joined.reshape(*joined.shape[:-1], *common, -1)
    n_ahead += row.n_common
    sizes = [math.prod(leaves[name][n_ahead:]) for name in row.ours]
    parts = np.split(joined, np.cumsum(sizes)[:-1], axis=-1)
    for name, part in zip(row.ours, parts, strict=True):
      ours[name] = part.reshape(leaves[name])
  params = jax.tree_util.tree_map_with_path(
    lambda path, _: ours[_name(path)], shapes
  )
  return {
    name: stack.stack(part, len(config.pattern)) if "layer_0" in part else part
    for name, part in params.items()
  }


def _rows(config: families.Config, ours: Mapping[str, Any]) -> list[Row]:
  """The rows that this config has, one for every layer."""

  n_first = getattr(config, "n_dense", 0)  # layers in a stack of their own

  def of_layer(row, i):
    names = tuple(name.format(i=i, j=i - n_first) for name in row.ours)
    return dataclasses.replace(row, theirs=row.theirs.format(i=i), ours=names)

  rows = {
    of_layer(row, i)
    for row in TABLES[families.name(config)]
    for i in range(config.n_layers)
  }
  used = [row for row in rows if row.ours[0] in ours]
  missing = set(ours) - {name for row in used for name in row.ours}
  assert not missing, f"no row for {sorted(missing)}"
  return used


def _two_dims(x: Any, row: Row) -> np.ndarray:
  x = np.asarray(x)
  if not row.n_in:
    return x.reshape(-1)
  copies, rest = x.shape[: row.n_copies], x.shape[row.n_copies :]
  common = rest[row.n_in : row.n_in + row.n_common]
  return x.reshape(*copies, math.prod(rest[: row.n_in]), *common, -1)


def _flat(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
