"""StableLM."""

from typing import Any

from convert import settings
from convert.names import llama, rotary
from convert.names.row import Row
from convert.settings import Settings
from models import stablelm

_NORMS = {
  "model.norm": "norm",
  "model.layers.{i}.input_layernorm": "stack/layer_{i}/attention_norm",
  "model.layers.{i}.post_attention_layernorm": "stack/layer_{i}/mlp_norm",
}
ROWS = (
  *llama.ROWS,
  *[Row(f"{hf}.bias", (f"{name}/bias",)) for hf, name in _NORMS.items()],
)
KINDS = {"stablelm": ("StableLmForCausalLM",)}


def theirs(config: stablelm.Config) -> dict[str, Any]:
  """The keys of config.json.

  Raises:
    ValueError: their architecture lacks a part.
  """
  c = config
  fixed = dict(d_head=c.d_model // c.n_heads, qk_normed=False)
  settings.agree("stablelm", c, **fixed, pattern=("full",) * len(c.pattern))
  found = llama.common(c, "stablelm", *KINDS["stablelm"])
  del found["rms_norm_eps"], found["head_dim"]
  return {
    **found,
    "layer_norm_eps": c.norm_epsilon,
    "use_qkv_bias": c.qkv_biased,
    "use_parallel_residual": c.parallel,
    **rotary.theirs(c.rope_theta, c.rope_scaling, c.max_length, c.rotary_share),
  }


def ours(s: Settings) -> stablelm.Config:
  """The way back."""
  s.expect("qk_layernorm", False)
  return stablelm.Config(
    **llama.common_of(s, length=4096, share=0.25, epsilon="layer_norm_eps"),
    qkv_biased=s.take("use_qkv_bias", False),
    parallel=s.take("use_parallel_residual", False),
  )
