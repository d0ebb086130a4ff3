"""Floating-point operations that a model needs, whatever the hardware does.

Counts as in PaLM (arXiv 2204.02311, appendix B), with attention halved for
causality and cut at the window: recomputation and padding do not count, nor what
a few marked tokens see beyond their window.
"""

import math

import jax

from models import families
from models.layers.mask import Blocks


def n_params(config: families.Config) -> int:
  """All parameters, embeddings too."""
  leaves = jax.tree.leaves(families.abstract(config))
  return sum(math.prod(leaf.shape) for leaf in leaves)


def n_matmul_params(config: families.Config) -> int:
  """Parameters that multiply every token: not the looked-up tables, but the
  head, also where it is the embedding; of experts as many as are active.
  """
  return _n_matmul(config, is_ahead=False)


def forward_per_token(
  config: families.Config, length: int, source_length: int = 0
) -> float:
  """FLOPs per token of one forward pass over sequences of `length`.

  Of a family that reads a source, with the token's share of what that takes.
  """
  attention = 0.0
  for i in range(config.n_layers):
    kind = config.pattern[i % len(config.pattern)]
    if kind == "state":
      attention += config.state.n_flops
      continue
    attention += _attention(config, n_seen(config, kind, length))
  if not source_length:
    return 2 * n_matmul_params(config) + attention
  n_read = _n_matmul(config, is_ahead=False, reads=True)
  share = source_length / length
  n_layers = config.n_layers
  if "state" not in config.pattern:  # else the encoder has no attention
    n_layers += share * config.n_encoder_layers
  attention += n_layers * _attention(config, float(source_length))
  n_written = n_matmul_params(config) - n_read
  return 2 * (n_written + share * n_read) + attention


def n_seen(config: families.Config, kind: str, length: int) -> float:
  """Keys that a query of a text sees in the mean; a causal one's half counts."""
  is_cut = kind == "sliding" and config.window < length
  if families.is_causal(config):
    w = config.window
    return w * (1 - w / (2 * length)) if is_cut else length / 2
  if is_cut:
    return 2 * config.window + 1 - config.window * (config.window + 1) / length
  if hasattr(config, "block_size"):
    blocks = Blocks(size=config.block_size, n_random=config.n_random)
    if length > blocks.longest_whole:
      # Of n blocks two see all; of the rest two see four, and n - 4 five.
      n = -(-length // blocks.size)
      return (2 * length + (2 * 4 + (n - 4) * 5) * blocks.size) / n
  return float(length)


def train_per_token(
  config: families.Config, length: int, source_length: int = 0
) -> float:
  """FLOPs per token of forward and backward: three forward passes, also of
  what predicts the token after next.
  """
  forward = forward_per_token(config, length, source_length)
  if getattr(config, "ahead", False):
    forward += 2 * _n_matmul(config, is_ahead=True)
    forward += _attention(config, length / 2)
  return 3 * forward


def _attention(config: families.Config, n_seen: float) -> float:
  """FLOPs per token of a layer: logits, and what they weigh, over n_seen keys."""
  d_value = getattr(config, "d_value", config.d_head)
  return 2 * config.n_heads * (config.d_head + d_value) * n_seen


def _n_matmul(
  config: families.Config, *, is_ahead: bool, reads: bool = False
) -> int:
  """Of the model alone, or of what training adds to predict further.

  With `reads`, what multiplies the tokens of a source and not those of the text:
  the encoder, and the keys and values that a decoder has of it.
  """
  shapes, names = families.abstract(config), families.axes(config)
  is_names = lambda x: isinstance(x, tuple)  # noqa: E731
  experts = getattr(config, "experts", None)
  active = experts.n_active / experts.n_experts if experts else 1
  total = sum(
    math.prod(leaf.shape) * (active if "experts" in axes else 1)
    for (path, leaf), axes in zip(
      jax.tree.leaves_with_path(shapes),
      jax.tree.leaves(names, is_leaf=is_names),
      strict=True,
    )
    if not {"vocab", "position", "balance"} & set(axes)
    and (path[0].key == "ahead") == is_ahead
    and (not reads or _of_source([key.key for key in path]))
  )
  if reads:
    return round(total)
  if families.writes(config) or "words" in families.kinds(config):
    total += config.vocab_size * config.d_model
  return round(total)


def _of_source(names: list[str]) -> bool:
  is_cross = names[-2:] in (["cross", "k"], ["cross", "v"])
  return names[0].startswith("encoder") or is_cross
