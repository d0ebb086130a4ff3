"""What a model is trained on: five arrays of one shape, and what goes beside."""

import typing
from typing import Any

import flax.struct
from jaxtyping import Array, Float, Int


# Unchecked: as a pytree it also carries shardings, shapes and stacks.
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

  @property
  def beside(self) -> dict[str, Any]:
    """What a model is called with beside the tokens."""
    return {} if self.types is None else {"types": self.types}
