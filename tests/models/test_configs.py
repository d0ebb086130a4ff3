"""Configs refuse what no model could be, with the name and the value."""

import pytest

from configs import fields
from models import falcon, gemma, gpt, llama, neox, phi3
from models.layers.position import Scaling

LLAMA = llama.PRESETS["3m"]
GPT = gpt.PRESETS["gpt2_124m"]
NEOX = neox.PRESETS["pythia_70m"]
FALCON = falcon.PRESETS["falcon_7b"]
GEMMA = gemma.PRESETS["gemma_2b"]
PHI3 = phi3.PRESETS["phi4"]
ONE_PAIR = Scaling(
  kind="longrope", factor=2.0, original_length=64, short=(1.0,), long=(2.0,)
)


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
    (LLAMA, dict(pattern=("full",) * 7)),
    (LLAMA, dict(dtype="float8")),
    (LLAMA, dict(remat="most")),
    (LLAMA, dict(dropout=1.0)),
    (GPT, dict(n_heads=7)),
    (GPT, dict(n_heads=0)),
    (GPT, dict(activation="swish")),
    (GPT, dict(dropout=-0.1)),
    (NEOX, dict(rotary_share=0.01)),
    (NEOX, dict(branches="shared")),
    (FALCON, dict(n_kv_heads=2)),
    (GEMMA, dict(local_theta=1e4)),
    (GEMMA, dict(softcap=0.0)),
    (PHI3, dict(rope_scaling=ONE_PAIR)),
  ],
  ids=lambda x: str(x) if isinstance(x, dict) else type(x).__module__,
)
def test_impossible_models_are_refused_by_name(preset, change):
  name = next(iter(change))
  with pytest.raises(ValueError, match=name):
    fields.make(type(preset), change, "config.model", preset)
