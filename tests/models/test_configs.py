"""Configs refuse what no model could be, with the name and the value."""

import pytest

from configs import fields
from models import gpt, llama

LLAMA = llama.PRESETS["3m"]
GPT = gpt.PRESETS["gpt2_124m"]


@pytest.mark.parametrize(
  ("preset", "change"),
  [
    (LLAMA, dict(vocab_size=0)),
    (LLAMA, dict(n_layers=0)),
    (LLAMA, dict(n_heads=0)),
    (LLAMA, dict(n_kv_heads=0)),
    (LLAMA, dict(n_kv_heads=4)),
    (LLAMA, dict(d_head=33)),
    (LLAMA, dict(max_length=2**20 + 1)),
    (LLAMA, dict(pattern=())),
    (LLAMA, dict(pattern=("local",))),
    (LLAMA, dict(pattern=("sliding",))),
    (LLAMA, dict(window=16)),
    (LLAMA, dict(window=0, pattern=("sliding",))),
    (LLAMA, dict(n_layers=3, window=4, pattern=("sliding", "full"))),
    (LLAMA, dict(dtype="float8")),
    (LLAMA, dict(remat="most")),
    (LLAMA, dict(dropout=1.0)),
    (GPT, dict(n_heads=7)),
    (GPT, dict(n_heads=0)),
    (GPT, dict(activation="swish")),
    (GPT, dict(dropout=-0.1)),
  ],
  ids=lambda x: str(x) if isinstance(x, dict) else type(x).__module__,
)
def test_impossible_models_are_refused_by_name(preset, change):
  name = next(iter(change))
  with pytest.raises(ValueError, match=name):
    fields.make(type(preset), change, "config.model", preset)
