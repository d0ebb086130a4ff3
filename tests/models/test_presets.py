"""Published sizes, how weights start, and what a step costs."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from benchmarks.parity import cases
from configs import fields
from models import families, flops, gpt, llama, mixtral

# Counted from the published checkpoints, or from their classes at these sizes.
N_PARAMS = {
  "smollm2_135m": 134_515_008,
  "llama1_7b": 6_738_415_616,
  "llama2_7b": 6_738_415_616,
  "llama2_70b": 68_976_648_192,
  "llama3_8b": 8_030_261_248,
  "llama3_70b": 70_553_706_496,
  "llama3_1_8b": 8_030_261_248,
  "llama3_2_1b": 1_235_814_400,
  "mistral_7b": 7_241_732_096,
  "qwen2_500m": 494_032_768,
  "qwen2_7b": 7_615_616_512,
  "qwen3_600m": 596_049_920,
  "qwen3_8b": 8_190_735_360,
  "mixtral_8x7b": 46_702_792_704,
  "qwen3_30b_a3b": 30_532_122_624,
  "deepseek_v2_lite": 15_706_484_224,
  "deepseek_v2": 235_741_434_880,
  "deepseek_v3": 671_026_419_200,
  "bert_base_uncased": 110_106_428,
  "bert_large_uncased": 336_226_108,
  "bert_base_cased": 108_932_934,
  "all_minilm_l6_v2": 22_713_216,
  "roberta_base": 124_697_433,
  "roberta_large": 355_412_057,
  "distilbert_base_uncased": 66_985_530,
  "distilbert_base_cased": 65_812_036,
  "longformer_base_4096": 148_711_257,
  "longformer_large_4096": 434_653_273,
  "bigbird_roberta_base": 128_112_824,
  "gpt2_124m": 124_439_808,
  "gpt2_355m": 354_823_168,
  "gpt2_774m": 774_030_080,
  "gpt2_1558m": 1_557_611_200,
  "smollm3_3b": 3_075_098_624,
  "qwen1_5_moe_a2_7b": 14_315_784_192,
  "qwen2_57b_a14b": 57_408_658_944,
  "gemma_2b": 2_506_172_416,
  "gemma_7b": 8_537_680_896,
  "gemma2_2b": 2_614_341_888,
  "gemma2_9b": 9_241_705_984,
  "gemma2_27b": 27_227_128_320,
  "gemma3_270m": 268_098_176,
  "gemma3_1b": 999_885_952,
  "gemma3_4b": 3_880_263_168,
  "gemma3_12b": 11_766_034_176,
  "gemma3_27b": 27_009_346_304,
  "olmo2_1b": 1_484_916_736,
  "olmo2_7b": 7_298_617_344,
  "olmo2_13b": 13_716_198_400,
  "olmo2_32b": 32_234_279_936,
  "phi3_mini_4k": 3_821_079_552,
  "phi3_medium_4k": 13_960_238_080,
  "phi4": 14_659_507_200,
  "stablelm_3b_4e1t": 2_795_443_200,
  "stablelm2_1_6b": 1_644_515_328,
  "pythia_70m": 70_426_624,
  "pythia_160m": 162_322_944,
  "pythia_410m": 405_334_016,
  "pythia_1b": 1_011_781_632,
  "pythia_1_4b": 1_414_647_808,
  "pythia_2_8b": 2_775_208_960,
  "pythia_6_9b": 6_857_302_016,
  "pythia_12b": 11_846_072_320,
  "gpt_neox_20b": 20_554_567_680,
  "opt_125m": 125_239_296,
  "opt_1_3b": 1_315_758_080,
  "opt_2_7b": 2_651_596_800,
  "opt_6_7b": 6_658_473_984,
  "opt_13b": 12_853_473_280,
  "opt_30b": 29_974_540_288,
  "opt_66b": 65_719_701_504,
  "bloom_560m": 559_214_592,
  "bloom_1b1": 1_065_314_304,
  "bloom_1b7": 1_722_408_960,
  "bloom_3b": 3_002_557_440,
  "bloom_7b1": 7_069_016_064,
  "bloom": 176_247_271_424,
  "mpt_7b": 6_649_286_656,
  "falcon_7b": 6_921_720_704,
  "falcon_40b": 41_303_293_952,
  "mamba2_130m": 128_989_632,
  "mamba2_370m": 368_346_624,
  "mamba2_780m": 780_161_280,
  "mamba2_1_3b": 1_343_757_312,
  "mamba2_2_7b": 2_702_599_680,
  "codestral_mamba_7b": 7_285_403_648,
  "zaremba_medium": 19_765_200,
  "zaremba_large": 66_012_000,
  "t5_small": 60_506_624,
  "t5_base": 222_903_552,
  "t5_large": 737_668_096,
  "t5_3b": 2_851_598_336,
  "t5_11b": 11_307_321_344,
  "t5_v1_1_small": 76_961_152,
  "t5_v1_1_base": 247_577_856,
  "t5_v1_1_large": 783_150_080,
  "t5_v1_1_xl": 2_849_757_184,
  "t5_v1_1_xxl": 11_135_332_352,
  "bart_base": 139_420_416,
  "bart_large": 406_291_456,
  "bart_large_cnn": 406_290_432,
}
PRESETS = {
  name: preset
  for family in families.FAMILIES.values()
  for name, preset in fields.presets(family).items()
}
OURS = {"3m", "4m", "15m", "110m", "9m", "5m", "1m"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
  n_params = flops.n_params(PRESETS[name])
  if name in OURS:
    nominal = int(name.removesuffix("m")) * 1_000_000
    assert abs(n_params / nominal - 1) < 0.1
  else:
    assert n_params == N_PARAMS[name]


@pytest.mark.parametrize(
  "name",
  ["llama3_70b", "qwen3_8b", "gpt2_1558m", "mixtral_8x7b", "deepseek_v3"],
)
def test_every_dimension_of_every_weight_has_a_name(name):
  shapes = families.abstract(PRESETS[name])
  names = families.axes(PRESETS[name])
  jax.tree.map(
    lambda leaf, axes: len(axes) == leaf.ndim or pytest.fail(str(axes)),
    shapes,
    names,
    is_leaf=lambda x: isinstance(x, tuple),
  )


SIZES = dict(vocab_size=256, d_model=64, n_layers=2, n_heads=4, d_ff=128)
LLAMA = llama.Config(
  **SIZES, n_kv_heads=2, d_head=16, qkv_biased=True, qk_normed=True
)
GPT = gpt.Config(**SIZES, max_length=128)


@functools.cache
def initializer(config):
  return jax.jit(functools.partial(families.init, config))


def initial(config, seed=0):
  leaves = initializer(config)(jax.random.key(seed))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(leaves)
  }


@pytest.mark.parametrize("config", [LLAMA, GPT], ids=["llama", "gpt"])
def test_weights_start_as_the_papers_say(config):
  """0.02; GPT-2: positions 0.01, and 0.02 / sqrt(2 L) into the residual: N12."""
  into_residual = 0.02 / (2 * config.n_layers) ** 0.5
  special = {"o": into_residual, "down": into_residual, "position": 0.01}
  for name, leaf in initial(config).items():
    last = name.split("/")[-1]
    if "scale" in last:
      assert np.all(leaf == 1), name
    elif "bias" in last:
      assert np.all(leaf == 0), name
    else:
      key = "position" if name.startswith("position") else last
      std = special.get(key, 0.02) if config is GPT else 0.02
      tolerance = 4 / (2 * leaf.size) ** 0.5  # four sigma
      assert abs(leaf.std() / std - 1) < tolerance, name
      assert abs(leaf.mean()) < 4 * std / leaf.size**0.5, name
      assert leaf.dtype == np.float32


def test_no_two_weights_start_alike():
  """Layers, leaves and seeds each draw their own numbers."""
  matrices = [
    row
    for seed in (0, 1)
    for leaf in initial(LLAMA, seed).values()
    for row in (leaf if leaf.ndim > 2 else leaf[None])
    if leaf.std() > 0
  ]
  flat = np.stack([m.reshape(-1)[:1024] / m.std() for m in matrices])
  correlation = flat @ flat.T / 1024 - np.eye(len(flat))
  assert np.abs(correlation).max() < 0.2  # six sigma


@pytest.mark.parametrize(
  "config",
  [
    dataclasses.replace(LLAMA, d_model=256, d_head=64, d_ff=768),
    dataclasses.replace(GPT, d_model=256, d_ff=1024),
  ],
  ids=["llama", "gpt"],
)
def test_counted_flops_are_those_of_the_compiler(config):
  """Within 5 %, once the half of attention that causality hides is added."""
  length = 128
  config = dataclasses.replace(config, scanned=False, dtype="float32")
  ids = jnp.zeros((2, length), jnp.int32)

  def loss(params):
    hidden, _ = families.build(config).apply(
      {"params": params}, ids, ids, ids + 1
    )
    return families.logits(config, params, hidden).sum()

  step = jax.jit(jax.grad(loss)).lower(families.abstract(config))
  per_token = step.cost_analysis()["flops"] / ids.size
  attention = 2 * config.n_layers * config.n_heads * config.d_head * length
  ours = flops.train_per_token(config, length) + 3 * attention
  assert abs(per_token / ours - 1) < 0.05
  forward = flops.forward_per_token(config, length)
  assert flops.train_per_token(config, length) == 3 * forward


def test_a_window_costs_what_it_sees():
  """The keys that each query of a sliding layer sees, counted one by one."""
  windowed = dataclasses.replace(
    LLAMA, n_layers=4, window=16, pattern=("sliding", "full")
  )
  full = dataclasses.replace(LLAMA, n_layers=4)
  length, per_key = 64, 4 * LLAMA.n_heads * LLAMA.d_head
  seen = np.mean([min(t, 16) for t in range(length)])  # a query's half counts
  saved = flops.forward_per_token(full, length) - flops.forward_per_token(
    windowed, length
  )
  expected = 2 * per_key * (length / 2 - seen)
  np.testing.assert_allclose(saved, expected, rtol=0.05)


@pytest.mark.parametrize("name", ["longformer_words", "bigbird_words"])
def test_what_both_directions_cost_is_what_they_see(name):
  """Keys of each query, counted off the mask of a text in one segment."""
  config = dataclasses.replace(cases.CASES[name], max_length=64)
  positions = jnp.arange(64)[None]
  seen = families.build(config).seen(positions, positions * 0 + 1, None)
  if config.window:  # as the layers set it
    seen = seen.replace(window=config.window + 1)
  counted = seen.dense().sum(-1).mean()
  found = flops.n_seen(config, config.pattern[0], 64)
  np.testing.assert_allclose(found, counted, rtol=1e-6)


def test_of_experts_only_the_active_ones_compute():
  """Mixtral 8x7B has 12.9 B active parameters (2401.04088, section 2)."""
  c = mixtral.PRESETS["mixtral_8x7b"]
  n_active = flops.n_matmul_params(c) + c.vocab_size * c.d_model
  assert round(n_active / 1e9, 1) == 12.9
