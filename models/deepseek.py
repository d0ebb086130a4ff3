"""DeepSeek-V2 and V3: latent attention, many small experts, dense first layers.

DeepSeekMoE: arXiv 2401.06066.  V2: 2405.04434.  V3: 2412.19437.
With `ahead`, a module of one more layer predicts the token after next while the
model is trained (V3, section 2.2); it shares embedding and head, and nothing
else runs it. As in the published weights it reads hidden states behind the last
norm. Deviation: the balance loss is of the whole batch, not of each sequence.
"""

import dataclasses
import math
from typing import Annotated, Any

from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from configs import fields
from configs.ranges import Count, Epsilon, Fraction, Natural
from models import llama, mixtral
from models.cache import Cache
from models.layers import decoder, position, stack
from models.layers.dense import weight
from models.layers.embed import lookup
from models.layers.latent import Config as LatentConfig
from models.layers.latent import LatentAttention
from models.layers.moe import Config as ExpertsConfig
from models.layers.norm import RMSNorm
from models.layers.position import Rotary
from models.weights import Weight, einsum
from sharding import context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(decoder.Config):
  """Sizes as in the papers; parameters are fp32 whatever `dtype` is."""

  vocab_size: Count
  d_model: Count
  n_layers: Count
  n_heads: Count
  d_ff: Count  # of the dense layers
  d_expert: Count  # of one expert
  experts: ExpertsConfig
  attention: LatentConfig
  n_dense: Natural = 1  # first layers, which have no experts; 3 in V3
  max_length: position.Length = 4096  # tokens; the longest text it shall read
  # Base of the rotary frequencies.
  rope_theta: Annotated[float, "(1, inf)"] = 10_000.0
  rope_scaling: position.Scaling | None = None  # beyond the trained length
  norm_epsilon: Epsilon = 1e-6
  tied: bool = False  # the output head is the embedding
  ahead: bool = False  # a module for the token after next: training only
  dropout: Fraction = 0.0  # on each residual branch
  dtype: stack.Dtype = "bfloat16"  # of the computation
  remat: stack.Remat = "none"  # what the backward pass finds saved
  scanned: bool = True  # one compiled layer; False unrolls, for decoding

  def __post_init__(self):
    fields.check(self)
    if self.n_dense >= self.n_layers:
      raise ValueError(
        f"n_dense={self.n_dense} of n_layers={self.n_layers} leaves no layer "
        "with experts: lower it, or take the family llama."
      )
    position.check(self.d_head, self.d_rotary, self.rope_scaling)
    is_yarn = getattr(self.rope_scaling, "kind", "") == "yarn"
    if self.attention.mscale and not is_yarn:
      raise ValueError(
        f"attention.mscale={self.attention.mscale} says nothing without "
        "rope_scaling.kind=yarn: leave it 0."
      )

  # What a decoder-only architecture tells the cache and the FLOP count.
  pattern = ("full",)
  window = None

  @property
  def kept(self) -> tuple[int, int, int]:
    """Decoding keeps the rotated key and the latent, the same for all heads."""
    return 1, self.attention.d_rotary, self.attention.kv_rank

  @property
  def d_head(self) -> int:
    """Width of a query and of a key."""
    return self.attention.d_plain + self.attention.d_rotary

  @property
  def d_rotary(self) -> int:
    """Of these, those that turn with the position."""
    return self.attention.d_rotary

  @property
  def d_value(self) -> int:
    """Width of a head's value."""
    return self.attention.d_value


class Block(llama.Block):
  """x + attention(norm x), then x + mlp(norm x) or x + experts(norm x)."""

  config: Config

  def self_attention(self) -> nn.Module:
    """Latent attention."""
    c = self.config
    scale = c.d_head**-0.5
    if c.attention.mscale:
      grown = 0.1 * c.attention.mscale * math.log(c.rope_scaling.factor) + 1.0
      scale *= grown**2
    return LatentAttention(
      config=c.attention,
      n_heads=c.n_heads,
      scale=scale,
      dtype=jnp.dtype(c.dtype),
      norm_epsilon=c.norm_epsilon,
      name="attention",
    )

  def feed_forward(self, x: Any, side: stack.Side) -> Any:
    """One feed-forward in the first layers, experts in the others."""
    if self.kind == "dense":
      return super().feed_forward(x, side)
    return mixtral.experts(self.config, self.config.d_expert, x, side)


class Ahead(nn.Module):
  """Hidden states that predict one token further.

  block([norm(rows of the next tokens), norm(hidden)] joined), normed.
  """

  config: Config

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, "B T D"],
    rows: Float[Array, "B T D"],
    side: stack.Side,
  ) -> Float[Array, "B T D"]:
    c = self.config
    both = [
      RMSNorm(c.norm_epsilon, name="token_norm")(rows),
      RMSNorm(c.norm_epsilon, name="hidden_norm")(hidden),
    ]
    shape = (2 * c.d_model, c.d_model)
    dtype = jnp.dtype(c.dtype)
    w = weight(self, "join", shape, ("embed", "embed_out"), dtype=dtype)
    joined = jnp.concatenate(both, axis=-1)
    x = einsum("BTC,CD->BTD", joined, w, dtype)
    layer = stack.Stack(
      Block, c, 1, ("experts",), c.remat, scanned=False, name="stack"
    )
    x, _ = layer(stack.residual(x), side)
    return RMSNorm(c.norm_epsilon, name="norm")(x)


class Model(decoder.RotaryModel):
  """Tokens to hidden states.

  Sows "ahead" where it is asked for: what predicts the token after next.
  """

  block: type[nn.Module] = Block

  def rotary(self, positions: Int[Array, "B T"]) -> dict[str, Rotary]:
    """The same phases for all layers."""
    (phases,) = super().rotary(positions).values()
    return {"dense": phases, "experts": phases}

  def layers(
    self, x: Float[Array, "B T D"], side: stack.Side, cache: Cache | None
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    """The dense ones, then those with experts."""
    c = self.config
    first, rest = (None, None) if cache is None else cache.split(c.n_dense)
    if c.n_dense:
      dense = stack.Stack(
        Block, c, c.n_dense, ("dense",), c.remat, c.scanned, name="dense"
      )
      x, first = dense(x, side, first)
    layers = stack.Stack(
      Block,
      c,
      c.n_layers - c.n_dense,
      ("experts",),
      c.remat,
      c.scanned,
      name="stack",
    )
    x, rest = layers(x, side, rest)
    if cache is not None:
      rest = rest.replace(layers=first.layers + rest.layers)
    return x, rest

  def beside(
    self,
    hidden: Float[Array, "B T D"],
    table: Weight,
    tokens: Int[Array, "B T"],
    side: stack.Side,
  ) -> None:
    """What predicts the token after next.

    Behind the last token of a segment comes another's: nothing is asked of that
    place.
    """
    c = self.config
    if not c.ahead or not self.is_mutable_collection("ahead"):
      return
    following = lookup(table, context.following(tokens), jnp.dtype(c.dtype))
    ahead = Ahead(c, name="ahead")(hidden, following, side)
    self.sow("ahead", "hidden", ahead)


_YARN = position.Scaling(
  kind="yarn", factor=40.0, original_length=4096, attention_factor=1.0
)

PRESETS = {
  # Throughline's own: the quickstart's sizes, 4 of 16 experts and a shared one.
  "5m": Config(
    vocab_size=4096,
    d_model=192,
    n_layers=6,
    n_heads=6,
    d_ff=512,
    d_expert=64,
    experts=ExpertsConfig(
      n_experts=16,
      n_active=4,
      n_shared=1,
      scores="sigmoid",
      n_groups=4,
      n_active_groups=2,
      n_ranking=2,
      biased=True,
    ),
    attention=LatentConfig(
      q_rank=96, kv_rank=64, d_plain=32, d_rotary=16, d_value=32
    ),
    max_length=1024,
    tied=True,
  ),
  "deepseek_v2_lite": Config(
    vocab_size=102_400,
    d_model=2048,
    n_layers=27,
    n_heads=16,
    d_ff=10_944,
    d_expert=1408,
    experts=ExpertsConfig(
      n_experts=64,
      n_active=6,
      n_shared=2,
      gates_normed=False,
      balance_weight=0.001,
    ),
    attention=LatentConfig(mscale=0.707),
    max_length=163_840,
    rope_scaling=_YARN,
  ),
  "deepseek_v2": Config(
    vocab_size=102_400,
    d_model=5120,
    n_layers=60,
    n_heads=128,
    d_ff=12_288,
    d_expert=1536,
    experts=ExpertsConfig(
      n_experts=160,
      n_active=6,
      n_shared=2,
      gates_normed=False,
      gate_scale=16.0,
      n_groups=8,
      n_active_groups=3,
      balance_weight=0.003,
    ),
    attention=LatentConfig(q_rank=1536, mscale=0.707),
    max_length=163_840,
    rope_scaling=_YARN,
  ),
  "deepseek_v3": Config(
    vocab_size=129_280,
    d_model=7168,
    n_layers=61,
    n_heads=128,
    d_ff=18_432,
    d_expert=2048,
    experts=ExpertsConfig(
      n_experts=256,
      n_active=8,
      n_shared=1,
      scores="sigmoid",
      gate_scale=2.5,
      n_groups=8,
      n_active_groups=4,
      n_ranking=2,
      biased=True,
      balance_weight=0.0001,
    ),
    attention=LatentConfig(q_rank=1536, mscale=1.0),
    n_dense=3,
    max_length=163_840,
    rope_scaling=_YARN,
  ),
}
