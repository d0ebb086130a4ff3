"""Tiny models, their numbers and a packed batch, all made from seeds by numpy.

Both sides of a comparison start from here: ours, and that of `transformers`.
"""

import dataclasses
import math
import pathlib
import zlib
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from data.batch import Batch, Source
from models import (
  bart,
  bert,
  bigbird,
  bloom,
  deepseek,
  distilbert,
  falcon,
  families,
  gemma,
  gpt,
  llama,
  longformer,
  mamba2,
  mixtral,
  mpt,
  neox,
  olmo2,
  opt,
  phi3,
  roberta,
  stablelm,
  t5,
)
from models.layers import heads, latent, moe, ssm
from models.layers.position import Scaling
from sharding import mesh, rules

STORED = pathlib.Path("tests/golden/transformers.npz")

_LLAMA = llama.Config(
  vocab_size=48,
  d_model=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  d_head=8,
  d_ff=56,
  max_length=16,
  dtype="float32",
)


def _stretched(**scaling) -> llama.Config:
  return dataclasses.replace(_LLAMA, rope_scaling=Scaling(**scaling))


def _experts(config: llama.Config, **experts) -> mixtral.Config:
  sizes = moe.Config(n_experts=5, n_active=2, **experts)
  return mixtral.Config(**{**vars(config), "d_ff": 24}, experts=sizes)


def _deepseek(mscale: float, **settings) -> deepseek.Config:
  """Three layers, the first ones dense; `settings` of attention or experts."""
  widths = dict(kv_rank=12, d_plain=8, d_rotary=4, d_value=6)
  q_rank, n_dense = settings.pop("q_rank", None), settings.pop("n_dense", 1)
  yarn = Scaling(
    kind="yarn", factor=4.0, original_length=512, attention_factor=1.0
  )
  return deepseek.Config(
    vocab_size=48,
    d_model=32,
    n_layers=3,
    n_heads=4,
    d_ff=56,
    d_expert=24,
    n_dense=n_dense,
    experts=moe.Config(n_experts=8, n_active=3, **settings),
    attention=latent.Config(**widths, q_rank=q_rank, mscale=mscale),
    max_length=16,
    rope_scaling=yarn if mscale else None,
    dtype="float32",
  )


def _kin(module, **settings) -> families.Config:
  """Of another family, with the sizes of the Llama."""
  return module.Config(**{**vars(_LLAMA), **settings})


def _gpts(module, **settings) -> families.Config:
  """GPT's kin, with feed-forwards of four times the width."""
  sizes = dict(vocab_size=48, d_model=32, n_layers=2, n_heads=4, d_ff=128)
  return module.Config(**sizes, max_length=16, dtype="float32", **settings)


_GEMMA = dict(tied=True, norm_epsilon=1e-6, d_head=12)
_GEMMA2 = dict(
  **_GEMMA,
  sandwiched=True,
  window=5,
  pattern=("sliding", "full"),
  query_size=20,
)
_GEMMA3 = dict(
  **_GEMMA,
  n_layers=4,
  sandwiched=True,
  qk_normed=True,
  window=5,
  pattern=("sliding", "sliding", "full"),
  rope_theta=1_000_000.0,
  local_theta=10_000.0,
  rope_scaling=Scaling(kind="linear", factor=8.0),
)


def _mamba2(n_groups: int) -> mamba2.Config:
  return mamba2.Config(
    vocab_size=48,
    d_model=32,
    n_layers=2,
    n_heads=4,
    d_head=16,
    mixer=ssm.Config(d_state=6, n_groups=n_groups, chunk=6),
    max_length=16,
    tied=n_groups == 1,
    dtype="float32",
  )


def _long(original_length: int, n_pairs: int) -> Scaling:
  """Factors of one kind or the other are those of a text of 16 tokens."""
  return Scaling(
    kind="longrope",
    factor=4.0,
    original_length=original_length,
    short=tuple(1.0 + 0.1 * i for i in range(n_pairs)),
    long=tuple(2.0 + 0.5 * i for i in range(n_pairs)),
  )


def _encoder(cls: type, *kinds: str, **changes) -> families.Config:
  sizes = dict(vocab_size=48, d_ff=56, max_length=16, dtype="float32")
  pooling = "relu" if cls is distilbert.Config else "tanh"
  if cls is bigbird.Config and kinds == ("texts",):
    pooling = "gelu_tanh"
  n_labels = 3 if kinds in (("texts",), ("tokens",)) else 2
  asked = heads.Config(kinds=kinds, n_labels=n_labels, pooling=pooling)
  sizes = bert.sized(32, 2, 4, **sizes, heads=asked)
  return cls(**{**sizes, **changes})


_T5 = t5.Config(
  vocab_size=48,
  d_model=32,
  n_encoder_layers=3,
  n_layers=2,
  n_heads=4,
  d_head=6,
  d_ff=56,
  max_length=16,
  n_buckets=8,
  farthest=12,
  dtype="float32",
)

_LIMITED = dict(n_groups=4, n_active_groups=2)

CASES: dict[str, families.Config] = {
  "llama": _LLAMA,
  "llama_linear": _stretched(kind="linear", factor=4.0),
  "llama_dynamic": _stretched(kind="dynamic", factor=2.0, original_length=8),
  "llama_yarn": _stretched(kind="yarn", factor=4.0, original_length=512),
  "llama_llama3": _stretched(kind="llama3", factor=8.0, original_length=32),
  "mistral": dataclasses.replace(_LLAMA, window=5, pattern=("sliding",)),
  "qwen2": dataclasses.replace(_LLAMA, qkv_biased=True, norm_epsilon=1e-6),
  "qwen3": dataclasses.replace(
    _LLAMA, qk_normed=True, d_head=12, norm_epsilon=1e-6
  ),
  "qwen3_tied": dataclasses.replace(_LLAMA, qk_normed=True, tied=True),
  "mixtral": _experts(_LLAMA),
  "mixtral_roomy": _experts(_LLAMA, capacity_factor=2.5),  # room for all
  "qwen3_moe": _experts(
    dataclasses.replace(_LLAMA, qk_normed=True), gates_normed=False
  ),
  "deepseek_v2_lite": _deepseek(0.707, n_shared=2, gates_normed=False),
  "deepseek_v2": _deepseek(
    0.0, n_shared=2, gates_normed=False, gate_scale=2.0, q_rank=20, **_LIMITED
  ),
  "deepseek_v3": _deepseek(
    1.0,
    n_shared=1,
    scores="sigmoid",
    gate_scale=2.5,
    biased=True,
    n_ranking=2,
    q_rank=20,
    n_dense=2,
    **_LIMITED,
  ),
  "gpt2": gpt.Config(
    vocab_size=48,
    d_model=32,
    n_layers=2,
    n_heads=4,
    d_ff=56,
    max_length=16,
    dtype="float32",
  ),
  "smollm3": dataclasses.replace(
    _LLAMA, tied=True, norm_epsilon=1e-6, pattern=("full", "unrotated")
  ),
  "qwen2_moe": _experts(
    dataclasses.replace(_LLAMA, qkv_biased=True),
    n_shared=3,
    shared_gated=True,
    gates_normed=False,
  ),
  "gemma": _kin(gemma, **{**_GEMMA, "n_kv_heads": 1}),
  "gemma2": _kin(gemma, **_GEMMA2, softcap=2.0, final_softcap=3.0),
  "gemma3": _kin(gemma, **_GEMMA3),
  "olmo2": _kin(olmo2, qk_normed=True),
  "phi3": _kin(phi3, window=5, pattern=("sliding",)),
  "phi3_short": _kin(phi3, rope_scaling=_long(16, 4)),
  "phi3_long": _kin(phi3, rope_scaling=_long(8, 3), rotary_share=0.75),
  "stablelm": _kin(stablelm, qkv_biased=True),
  "stablelm_parallel": _kin(stablelm, parallel=True, rotary_share=0.5),
  "pythia": _gpts(neox),
  "neox_sequential": _gpts(neox, branches="sequential", rotary_share=1.0),
  "opt": _gpts(opt),
  "bloom": _gpts(bloom),
  "bloom_six_heads": dataclasses.replace(
    _gpts(bloom), d_model=36, n_heads=6, d_ff=144
  ),
  "mpt": _gpts(mpt),
  "mpt_six_heads": dataclasses.replace(
    _gpts(mpt), d_model=36, n_heads=6, d_ff=144
  ),
  "falcon_7b": _gpts(falcon),
  "falcon_40b": _gpts(falcon, n_kv_heads=2, branches="parallel"),
  "falcon_11b": _gpts(falcon, n_kv_heads=2, tied=False),
  # Chunks of 6 tokens: texts of 7, 5 and 16 end anywhere in them.
  "mamba2": _mamba2(n_groups=1),
  "mamba2_groups": _mamba2(n_groups=2),
  "falcon_sequential": _gpts(falcon, n_kv_heads=4, branches="sequential"),
  "bert": _encoder(bert.Config, "words"),
  "bert_pair": _encoder(bert.Config, "words", "texts"),
  "bert_pooled": _encoder(bert.Config, "pooled"),
  "bert_texts": _encoder(bert.Config, "texts"),
  "bert_tokens": _encoder(bert.Config, "tokens", activation="gelu_tanh"),
  "bert_spans": _encoder(bert.Config, "spans"),
  "roberta": _encoder(roberta.Config, "words"),
  "roberta_pooled": _encoder(roberta.Config, "pooled"),
  "roberta_texts": _encoder(roberta.Config, "texts"),
  "roberta_tokens": _encoder(roberta.Config, "tokens"),
  "roberta_spans": _encoder(roberta.Config, "spans"),
  "distilbert": _encoder(distilbert.Config, "words"),
  "distilbert_texts": _encoder(distilbert.Config, "texts"),
  "distilbert_tokens": _encoder(distilbert.Config, "tokens"),
  "distilbert_spans": _encoder(distilbert.Config, "spans"),
  **{
    f"longformer_{kind}": _encoder(longformer.Config, kind, window=2)
    for kind in ("words", "pooled", "texts", "tokens", "spans")
  },
  **{
    f"bigbird_{'_'.join(kinds)}": _encoder(
      bigbird.Config, *kinds, block_size=2, n_random=1
    )
    for kinds in (
      ("words",),
      ("words", "texts"),
      ("pooled",),
      ("texts",),
      ("tokens",),
    )
  },
  "t5": _T5,
  "t5_v1_1": dataclasses.replace(
    _T5, activation="gelu_tanh", gated=True, tied=False
  ),
  "bart": bart.Config(
    vocab_size=48,
    d_model=32,
    n_encoder_layers=3,
    n_layers=2,
    n_heads=4,
    d_ff=56,
    max_length=16,
    dtype="float32",
  ),
}

# What others have, in another combination: slow tests run these.
VARIANTS = frozenset(
  """
  gemma phi3 phi3_short stablelm_parallel neox_sequential bloom_six_heads
  mpt_six_heads falcon_11b falcon_sequential mamba2_groups
  """.split()
) | (
  {name for name, config in CASES.items() if not families.is_causal(config)}
  - {
    "bert_pair",
    "bert_spans",
    "roberta_texts",
    "distilbert_texts",
    "longformer_texts",
    "bigbird_words_texts",
  }
)


def params(config: families.Config) -> families.Params:
  """Weights that move every part: scales and biases are off 1 and 0 too."""

  def draw(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    noise = np.random.default_rng(zlib.crc32(name.encode())).normal(
      size=leaf.shape
    )
    if name.endswith("scale"):
      return np.float32(1 + 0.2 * noise)
    return np.float32(0.2 * noise)

  return jax.tree_util.tree_map_with_path(draw, families.abstract(config))


def batch(config: families.Config) -> Batch:
  """Two rows of 16: segments of 7, 5 and padding of 4; one segment of 16.

  Where a source is read, its rows of 14 have segments of 4, 8 and 2 of padding,
  and of 14. Theirs take dynamic NTK and LongRoPE by the longest text of all, so
  that each of their rows is one text.
  """
  rng = np.random.default_rng(0)
  # Padding's row of an embedding has no gradient in `transformers`' encoders.
  first = 0 if families.is_causal(config) else 4
  tokens, targets = rng.integers(
    first, config.vocab_size, (2, 2, 16), dtype=np.int32
  )
  types = None
  if getattr(config, "n_types", 0) > 1 or config.window and not first == 0:
    types = rng.integers(0, 2, (2, 16), dtype=np.int32)
  segments = np.ones((2, 16), np.int32)
  positions = np.tile(np.arange(16, dtype=np.int32), (2, 1))
  scaling = getattr(config, "rope_scaling", None)
  if scaling is None or scaling.kind not in ("dynamic", "longrope"):
    segments[0] = [1] * 7 + [2] * 5 + [0] * 4
    positions[0] = [*range(7), *range(5), *range(4)]
  weights = np.float32(segments > 0)
  whole = Batch(tokens, targets, weights, segments, positions, types)
  if not families.reads(config, "source"):
    return whole
  # 0 is padding to BART, which has no gradient there.
  read = rng.integers(1, config.vocab_size, (2, 14), dtype=np.int32)
  segments = np.array([[1] * 4 + [2] * 8 + [0] * 2, [1] * 14], np.int32)
  positions = np.tile(np.arange(14, dtype=np.int32), (2, 1))
  positions[0] = [*range(4), *range(8), 0, 0]
  source = Source(read, positions, segments)
  return whole.replace(tokens=np.maximum(tokens, 1), source=source)


def asked(config: families.Config) -> tuple[str, ...]:
  """What the model is asked for: a decoder, for words."""
  return families.kinds(config) or ("words",)


def weights_of(kind: str, batch: Batch) -> np.ndarray:
  """What counts of a batch: of what is asked of texts, their first tokens."""
  of_texts = kind in ("pooled", "texts")
  return batch.weights * (batch.positions == 0) if of_texts else batch.weights


def layout(config: families.Config) -> rules.Layout:
  """Eight devices: rows, widths, heads, and positions where they can be split.

  Four of them for two rows of sources, whose positions cannot.
  """
  parts = dict(context=2, tensor=2)
  if "state" in config.pattern:
    parts = dict(tensor=4)
  elif families.reads(config, "source"):
    parts = dict(tensor=2)
  parts = dict(data=1, fsdp=2, **parts)
  used = jax.devices()[: math.prod(parts.values())]
  return rules.make(mesh.make(mesh.Config(**parts), used), "fsdp_tensor")


def run(
  config: families.Config, weights: families.Params | None = None
) -> tuple[np.ndarray, families.Params]:
  """Our logits of `batch`, and the gradients of its mean cross-entropy.

  The logits of all that is asked lie side by side, zero where nothing counts.
  Targets are taken modulo how many there are. Weights are `params` where they
  are not given.
  """

  def loss(params, batch):
    hidden, _ = families.build(config).apply(
      {"params": params},
      batch.tokens,
      batch.positions,
      batch.segment_ids,
      **batch.beside,
      deterministic=False,  # a capacity counts in training; nothing is random
    )
    nll, found = 0.0, []
    for kind in asked(config):
      if kind == "words":
        logits = families.logits(config, params, hidden)
      else:
        logits = families.asked(config, params, kind, hidden)
      targets = batch.targets[..., None] % logits.shape[-1]
      log_p = jax.nn.log_softmax(logits)
      chosen = jnp.take_along_axis(log_p, targets, axis=-1)[..., 0]
      counted = weights_of(kind, batch)
      nll -= (chosen * counted).sum()
      found.append(jnp.where(counted[..., None] > 0, logits, 0))
    return nll / batch.weights.sum(), jnp.concatenate(found, -1)

  # One exchange after the other: devices of a busy CPU took independent ones in
  # different orders, and waited for each other to the end.
  in_order = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
  step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=in_order)
  weights = params(config) if weights is None else weights
  gradients, logits = step(weights, batch(config))
  return np.asarray(logits), jax.tree.map(np.asarray, gradients)


def stored() -> dict[str, np.ndarray]:
  """What `transformers` gave for the cases, as benchmarks/parity/golden.py
  stores it.
  """
  with np.load(STORED, allow_pickle=False) as arrays:
    return dict(arrays)


def sketch(gradients: Any) -> np.ndarray:
  """[leaves, 2]: the norm of every gradient, and its part along a fixed noise.

  Two numbers that no wrong gradient has by chance.
  """
  rng = np.random.default_rng(1)
  leaves = [np.float64(leaf) for leaf in jax.tree.leaves(gradients)]
  return np.array(
    [
      (np.linalg.norm(leaf), np.vdot(rng.normal(size=leaf.shape), leaf))
      for leaf in leaves
    ]
  )
