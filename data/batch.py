"""What a model is trained on: five arrays of one shape, and what goes beside."""

import typing
from typing import Any

import flax.struct
from jaxtyping import Array, Float, Int


# Unchecked, both: as pytrees they also carry shardings, shapes and stacks.
@typing.no_type_check
@flax.struct.dataclass
class Source:
  """Packed rows of texts that an encoder reads whole.

  Segment k of a row is what segment k of the batch's row was made from.
  """

  tokens: Int[Array, "B S"]
  positions: Int[Array, "B S"]
  segment_ids: Int[Array, "B S"]  # 0 is padding


@typing.no_type_check
@flax.struct.dataclass
class Batch:
  """Packed rows of documents.

  Tokens and targets are shifted within each document before packing: a target
  follows its token in the same document, never in the next one. Positions count
  from 0 in every segment. The fields are numpy arrays when they leave data/ and
  device arrays inside a step.
  """

  tokens: Int[Array, "B T"]
  targets: Int[Array, "B T"]
  weights: Float[Array, "B T"]  # 0 where a target does not count
  segment_ids: Int[Array, "B T"]  # 0 is padding
  positions: Int[Array, "B T"]
  types: Int[Array, "B T"] | None = None  # for families that tell texts apart
  source: Source | None = None  # for families that read two texts
  # A token also sees the positions of its segment below this one, if ahead.
  prefix: Int[Array, "B T"] | None = None

  @property
  def beside(self) -> dict[str, Any]:
    """What a model is called with beside the tokens; see `families.reads`."""
    s, found = self.source, {}
    if self.types is not None:
      found["types"] = self.types
    if s is not None:
      found["source"] = s.tokens, s.positions, s.segment_ids
    if self.prefix is not None:
      found["prefix"] = self.prefix
    return found
