"""GPT-NeoX and Pythia: GPT whose branches lie side by side, partly rotary.

GPT-NeoX-20B: arXiv 2204.06745.  Pythia: 2304.01373.
"""

import dataclasses
from typing import Annotated, Literal

from flax import linen as nn

from configs.ranges import Count, Share
from models import gpt
from models.layers import decoder, mlp, position


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gpt.Config):
  """GPT's, without learned positions."""

  vocab_size: Count = 50_432
  max_length: position.Length = 2048  # tokens; the longest text it shall read
  activation: Literal[*mlp.ACTIVATIONS] = "gelu"
  # Base of the rotary frequencies.
  rope_theta: Annotated[float, "(1, inf)"] = 10_000.0
  rope_scaling: position.Scaling | None = None  # beyond the trained length
  rotary_share: Share = 0.25  # of a head's dimensions, that turn
  branches: Literal["sequential", "parallel"] = "parallel"
  tied: bool = False  # the output head is the embedding

  def __post_init__(self):
    super().__post_init__()
    position.check(self.d_head, self.d_rotary, self.rope_scaling)

  @property
  def d_rotary(self) -> int:
    """Dimensions of a head that turn with the position."""
    return int(self.d_head * self.rotary_share)


class Block(gpt.Block):
  """x + attention(norm x) + mlp(norm x), with a norm for each."""

  branches = property(lambda self: self.config.branches)


class Model(decoder.RotaryModel):
  """Tokens to hidden states."""

  block: type[nn.Module] = Block


def _pythia(d_model: int, n_layers: int, n_heads: int, **changes) -> Config:
  return Config(
    **{"vocab_size": 50_304, **changes},
    d_model=d_model,
    n_layers=n_layers,
    n_heads=n_heads,
    d_ff=4 * d_model,
  )


PRESETS = {
  "pythia_70m": _pythia(512, 6, 8),
  "pythia_160m": _pythia(768, 12, 12),
  "pythia_410m": _pythia(1024, 24, 16),
  "pythia_1b": _pythia(2048, 16, 8),
  "pythia_1_4b": _pythia(2048, 24, 16),
  "pythia_2_8b": _pythia(2560, 32, 32),
  "pythia_6_9b": _pythia(4096, 32, 32, vocab_size=50_432),
  "pythia_12b": _pythia(5120, 36, 40, vocab_size=50_688),
  "gpt_neox_20b": _pythia(6144, 44, 64, vocab_size=50_432),
}
