"""A config.json of theirs becomes ours and is refused where it cannot."""

import dataclasses
import json

import pytest

from benchmarks.parity import cases
from configs import fields
from convert import catalogue
from convert.settings import Settings
from models import families
from models.layers.position import Scaling

LLAMA = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 48,
  "hidden_size": 32,
  "intermediate_size": 56,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "rms_norm_eps": 1e-5,
}
# What no forward pass of a whole text sees; theirs has no word for it.
TRAINING = dict(dropout=0.0, dtype="bfloat16", remat="none", scanned=True)


def read(values: dict) -> families.Config:
  return catalogue.read(Settings(json.loads(json.dumps(values))))


def forward(config: families.Config) -> families.Config:
  """A config without what only training reads, its defaults spelled out."""
  changes = dict(TRAINING)
  scaling = getattr(config, "rope_scaling", None)
  if scaling is not None and scaling.kind in ("yarn", "llama3"):
    low, high = scaling.turns
    changes["rope_scaling"] = dataclasses.replace(scaling, low=low, high=high)
  if hasattr(config, "experts"):
    changes["experts"] = dataclasses.replace(
      config.experts, capacity_factor=None, balance_weight=0.0, z_weight=0.0
    )
  return dataclasses.replace(config, **changes)


PRESETS = {
  f"{family}/{name}": preset
  for family, cls in families.FAMILIES.items()
  if family in catalogue.FAMILIES
  for name, preset in fields.presets(cls).items()
}
BOTH_WAYS = {**cases.CASES, **PRESETS}


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_a_config_comes_back_as_it_was(name):
  config = BOTH_WAYS[name]
  theirs = catalogue.of(config).theirs(config)
  assert read(theirs) == forward(config)


def test_windows_of_some_layers_come_back():
  config = dataclasses.replace(
    cases.CASES["qwen2"], n_layers=6, window=5, pattern=("full", "sliding")
  )
  theirs = catalogue.of(config).theirs(config)
  assert theirs["layer_types"] == ["full_attention", "sliding_attention"] * 3
  assert read(theirs) == forward(config)
  older = {k: v for k, v in theirs.items() if k != "layer_types"}
  older["max_window_layers"] = 4
  assert read(older).pattern == ("full",) * 4 + ("sliding",) * 2


_LLAMA3 = {
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
_YARN = {
  "factor": 40,
  "mscale": 1.0,
  "mscale_all_dim": 0.707,
  "original_max_position_embeddings": 4096,
}


@pytest.mark.parametrize(
  "parameters, scaling",
  [
    ({"rope_type": "default"}, None),
    ({"type": "linear", "factor": 4.0}, Scaling(kind="linear", factor=4.0)),
    (
      {"rope_type": "llama3", **_LLAMA3},
      Scaling(
        kind="llama3", factor=8.0, original_length=8192, low=1.0, high=4.0
      ),
    ),
    (
      {"type": "yarn", **_YARN},
      Scaling(
        kind="yarn",
        factor=40.0,
        original_length=4096,
        # 0.1 ln 40 + 1 over 0.0707 ln 40 + 1
        attention_factor=1.0857262,
      ),
    ),
  ],
  ids=["default", "linear", "llama3", "yarn"],
)
def test_both_spellings_of_rotary_positions_are_read(parameters, scaling):
  before = read({**LLAMA, "rope_theta": 5e5, "rope_scaling": parameters})
  now = read({**LLAMA, "rope_parameters": {"rope_theta": 5e5, **parameters}})
  assert before == now
  assert now.rope_theta == 5e5
  if scaling is None:
    assert now.rope_scaling is None
    return
  found = now.rope_scaling.attention_factor
  assert found == pytest.approx(scaling.attention_factor)
  assert now.rope_scaling == dataclasses.replace(
    scaling, attention_factor=found
  )


def test_what_is_not_said_is_their_default():
  config = read(LLAMA)
  assert (config.rope_theta, config.max_length) == (10_000.0, 2048)
  assert (config.n_kv_heads, config.d_head) == (4, 8)
  assert (config.tied, config.norm_epsilon) == (False, 1e-5)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"model_type": "lama"}, "the nearest is llama"),
    ({"architectures": ["LlamaForQuestionAnswering"]}, "LlamaForCausalLM"),
    ({"hidden_act": "gelu"}, 'hidden_act="gelu"'),
    ({"attention_bias": True}, "attention_bias=true"),
    ({"logit_scale": 0.5}, "logit_scale=0.5"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"rope_scaling": {"type": "mrope", "factor": 2.0}}, "'mrope'"),
    (
      {"rope_scaling": {"type": "linear", "factor": 2.0, "bent": 1}},
      "rope_scaling says bent=1",
    ),
    ({"rope_scaling": "linear"}, "a mapping should be"),
    ({"hidden_size": "32"}, "config.json holds a value of a wrong type"),
    ({"vocab_size": None}, "vocab_size"),
  ],
)
def test_what_we_do_not_have_is_refused_by_name(changes, words):
  with pytest.raises(ValueError) as caught:
    read({**LLAMA, **changes})
  assert words in str(caught.value)


def test_a_missing_key_is_named():
  values = {k: v for k, v in LLAMA.items() if k != "hidden_size"}
  with pytest.raises(ValueError, match="lacks hidden_size"):
    read(values)


def test_what_theirs_cannot_say_is_not_exported():
  config = dataclasses.replace(cases.CASES["qwen3"], qkv_biased=True)
  with pytest.raises(ValueError, match="qkv_biased=True has no place"):
    catalogue.of(config).theirs(config)
