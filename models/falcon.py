"""Falcon: parallel branches, few key and value heads, rotary positions.

arXiv 2311.16867. The 7B model has one head of keys and values, and one norm for
both branches; 40B has eight, and a norm for each. Not here: ALiBi (the
RefinedWeb models).
"""

import dataclasses
from typing import Annotated, Literal

from flax import linen as nn
from jaxtyping import Array, Float

from configs.ranges import Count
from models import gpt
from models.layers import decoder, mlp, position


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gpt.Config):
  """GPT's, without learned positions and without biases but in norms."""

  vocab_size: Count = 65_024
  max_length: position.Length = 2048  # tokens; the longest text it shall read
  activation: Literal[*mlp.ACTIVATIONS] = "gelu"
  n_kv_heads: Count = 1
  branches: decoder.Branches = "shared"
  # Base of the rotary frequencies.
  rope_theta: Annotated[float, "(1, inf)"] = 10_000.0
  rope_scaling: position.Scaling | None = None  # beyond the trained length
  tied: bool = True  # the output head is the embedding

  biased = False

  def __post_init__(self):
    super().__post_init__()
    if self.n_heads % self.n_kv_heads:
      raise ValueError(
        f"n_heads={self.n_heads} is not a multiple of n_kv_heads="
        f"{self.n_kv_heads}: every kv head serves the same number of heads."
      )
    position.check(self.d_head, self.d_rotary, self.rope_scaling)

  @property
  def d_rotary(self) -> int:
    """Dimensions of a head that turn with the position."""
    return self.d_head


class Block(gpt.Block):
  """x + attention(norm x) + mlp(norm x)."""

  branches = property(lambda self: self.config.branches)

  def before(
    self, branch: str, x: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """A norm of its own has a name of its own, as in the checkpoints."""
    name = "alone" if self.branches == "parallel" else "norm"
    return self.norm(self.config, f"{branch}_{name}")(x)


class Model(decoder.RotaryModel):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block


PRESETS = {
  "falcon_7b": Config(d_model=4544, n_layers=32, n_heads=71, d_ff=18_176),
  "falcon_40b": Config(
    d_model=8192,
    n_layers=60,
    n_heads=128,
    n_kv_heads=8,
    d_ff=32_768,
    branches="parallel",
  ),
}
