"""Mamba-2, whose config.json does not say how long texts may be."""

from typing import Any

from convert.names.row import Row, linear
from convert.settings import Settings
from models import mamba2
from models.layers import ssm

_THEIRS = "backbone.layers.{i}."
_OURS = "stack/layer_{i}/"
_MIXER = _OURS + "mixer/"
_INPUTS = tuple(_MIXER + name for name in ("z", "x", "b", "c", "dt"))
_TAPS = tuple(f"{_MIXER}conv_{name}" for name in "xbc")
_VECTORS = {
  "mixer.dt_bias": "dt_bias",
  "mixer.A_log": "a_log",
  "mixer.D": "skip",
  "mixer.norm.weight": "scale",
}
ROWS = (
  Row("backbone.embeddings.weight", ("embed/table",), 1),
  Row("lm_head.weight", ("head/table",), 1),
  Row("backbone.norm_f.weight", ("norm/scale",)),
  Row(_THEIRS + "norm.weight", (_OURS + "mixer_norm/scale",)),
  Row(_THEIRS + "mixer.in_proj.weight", _INPUTS, 1, transposed=True),
  Row(_THEIRS + "mixer.conv1d.weight", _TAPS, 1, transposed=True, n_ones=1),
  Row(_THEIRS + "mixer.conv1d.bias", tuple(f"{name}_bias" for name in _TAPS)),
  linear(_THEIRS + "mixer.out_proj", _MIXER + "o", 2),
  *[Row(_THEIRS + hf, (_MIXER + name,)) for hf, name in _VECTORS.items()],
)
KINDS = {"mamba2": ("Mamba2ForCausalLM",)}


def theirs(config: mamba2.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: their architecture has other sizes.
  """
  c, m = config, config.mixer
  inner = c.n_heads * c.d_head
  if inner % c.d_model:
    raise ValueError(
      f"n_heads={c.n_heads} of d_head={c.d_head} are no multiple of d_model="
      f"{c.d_model}: transformers' mamba2 has only such."
    )
  return {
    "architectures": [*KINDS["mamba2"]],
    "model_type": "mamba2",
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_hidden_layers": c.n_layers,
    "num_heads": c.n_heads,
    "head_dim": c.d_head,
    "expand": inner // c.d_model,
    "state_size": m.d_state,
    "n_groups": m.n_groups,
    "conv_kernel": m.n_taps,
    "chunk_size": m.chunk,
    "max_position_embeddings": c.max_length,
    "layer_norm_epsilon": c.norm_epsilon,
    "tie_word_embeddings": c.tied,
  }


def ours(s: Settings) -> mamba2.Config:
  """The way back; the residual stream is of the computation's type."""
  s.expect("use_bias", False)
  s.expect("use_conv_bias", True)
  s.expect("hidden_act", "silu")
  s.expect("rms_norm", True)
  limit = s.take("time_step_limit", None)
  endless = float("inf"), "Infinity", {"__float__": "Infinity"}
  if limit is not None and (limit[0] != 0 or limit[1] not in endless):
    s.expect("time_step_limit", None)
  for key in (  # follow from others, or are of the start of training
    "expand",
    "intermediate_size",
    "norm_before_gate",
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "time_step_floor",
    "time_step_max",
    "time_step_min",
    "time_step_rank",
  ):
    s.take(key, None)
  return mamba2.Config(
    vocab_size=s.take("vocab_size", 32_768),
    d_model=s.take("hidden_size", 4096),
    n_layers=s.take("num_hidden_layers", 64),
    n_heads=s.take("num_heads", 128),
    d_head=s.take("head_dim", 64),
    mixer=ssm.Config(
      d_state=s.take("state_size", 128),
      n_groups=s.take("n_groups", 8),
      n_taps=s.take("conv_kernel", 4),
      chunk=s.take("chunk_size", 256),
    ),
    max_length=s.take("max_position_embeddings", 2048),
    norm_epsilon=s.take("layer_norm_epsilon", 1e-5),
    tied=s.take("tie_word_embeddings", False),
  )
