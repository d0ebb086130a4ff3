"""Layers in sequence: one compiled body, scanned, with a pattern of kinds.

A pattern such as ("sliding", "sliding", "full") repeats down the stack. The
scan runs over its repetitions: compile time is that of one, whatever the depth.
Layers of a last repetition that is cut short follow one by one.
Params: {"layers": {"block_0": ...}} with a leading dimension when scanned,
{"layer_0": ..., "layer_1": ...} when not.
"""

from typing import Any, Literal

import flax.struct
import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from models.cache import Cache
from models.layers.mask import Mask
from models.layers.position import RelativeBias, Rotary
from sharding.rules import constrain

_save = jax.checkpoint_policies


def _offload(*names: str) -> Any:
  return _save.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=list(names),
    offload_src="device",
    offload_dst="pinned_host",
  )


# What the backward pass finds saved; all else it computes again.
REMAT: dict[str, Any] = {
  "none": None,  # everything is saved
  "full": _save.nothing_saveable,
  "minimal": _save.save_only_these_names("product"),  # all weight matmuls
  "save_qkv": _save.save_only_these_names("qkv"),
  "save_attended": _save.save_only_these_names("attended"),
  "save_widened": _save.save_only_these_names("widened"),
  # To the host's memory, and back for the backward pass.
  "offload_attended": _offload("attended"),
  "offload_qkv": _offload("qkv"),
}

Remat = Literal[*REMAT]
Dtype = Literal["float32", "bfloat16", "float16"]


@flax.struct.dataclass
class Side:
  """What every layer sees beside the residual stream."""

  mask: Mask
  # By kind of layer; one that is not there turns none.
  rotary: dict[str, Rotary]
  deterministic: bool = flax.struct.field(pytree_node=False, default=True)
  bias: RelativeBias | None = None  # of the logits
  # Another text that was read, and who may see what of it.
  memory: Float[Array, "B S D"] | None = None
  memory_mask: Mask | None = None


def residual(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """The residual stream between layers, pinned to the layout."""
  return constrain(x, "batch", "stream", "act_embed")


class _Group(nn.Module):
  """One repetition of the pattern: the body of the scan."""

  block: type[nn.Module]
  config: Any
  pattern: tuple[str, ...]

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], side: Side, live: Bool[Array, ""] | None
  ):
    before = x
    for i, kind in enumerate(self.pattern):
      x, _ = self.block(self.config, kind, name=f"block_{i}")(x, side)
    return (x if live is None else jnp.where(live, x, before)), None


class Stack(nn.Module):
  """n_layers blocks of the kinds of a repeating pattern.

  A block is made as block(config, kind) and maps (x, side, layer cache or
  None, lengths) to (x, layer cache or None).
  """

  block: type[nn.Module]
  config: Any
  n_layers: int
  pattern: tuple[str, ...] = ("full",)
  remat: str = "none"
  scanned: bool = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    side: Side,
    cache: Cache | None = None,
    live: Bool[Array, "L"] | None = None,
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Runs the layers, but for repetitions of the pattern that are not live."""
    if not self.scanned:
      return self._in_sequence(x, side, cache)
    if cache is not None:
      raise ValueError("decoding runs unscanned: see models/decode.py.")
    layers = nn.scan(
      self._rematted(_Group, prevent_cse=False),
      variable_axes={"params": 0, "losses": 0, "figures": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(nn.broadcast, 0),
      length=self.n_layers // len(self.pattern),
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    groups = layers(self.block, self.config, self.pattern, name="layers")
    x, _ = groups(x, side, live)
    whole = self.n_layers - self.n_layers % len(self.pattern)
    return self._in_sequence(x, side, None, first=whole)

  def _in_sequence(self, x, side, cache, first=0):
    block = self.block if cache else self._rematted(self.block)
    written = []
    for i in range(first, self.n_layers):
      kind = self.pattern[i % len(self.pattern)]
      layer = block(self.config, kind, name=f"layer_{i}")
      if cache is None:
        x, _ = layer(x, side)
      else:
        x, slots = layer(x, side, cache.layers[i], cache.lengths)
        written.append(slots)
    if cache is None:
      return x, None
    n_read = jnp.not_equal(side.mask.q_segments, 0).sum(1)
    return x, cache.replace(layers=written, lengths=cache.lengths + n_read)

  def _rematted(self, module: type[nn.Module], **options) -> type[nn.Module]:
    if self.remat == "none":
      return module
    return nn.remat(module, policy=REMAT[self.remat], **options)


def unstack(params: Any) -> Any:
  """Scanned parameters -> unscanned ones, for decoding and export."""
  params = dict(params)
  groups = params.pop("layers")
  n_groups = jax.tree.leaves(groups)[0].shape[0]
  for j in range(len(groups)):
    for i in range(n_groups):
      layer = jax.tree.map(lambda x: x[i], groups[f"block_{j}"])  # noqa: B023
      params[f"layer_{i * len(groups) + j}"] = layer
  return params


def apart(params: Any) -> Any:
  """A model's parameters with the layers of every stack taken apart."""
  return {
    name: unstack(part) if "layers" in part else part
    for name, part in params.items()
  }


def stack(params: Any, n_pattern: int) -> Any:
  """The inverse of `unstack`."""
  names = sorted(
    (name for name in params if name.startswith("layer_")),
    key=lambda name: int(name.removeprefix("layer_")),
  )
  names = names[: len(names) - len(names) % n_pattern]
  rest = {name: p for name, p in params.items() if name not in names}
  groups = {
    f"block_{j}": jax.tree.map(
      lambda *xs: jnp.stack(xs), *[params[name] for name in names[j::n_pattern]]
    )
    for j in range(n_pattern)
  }
  return {**rest, "layers": groups}
