"""Settings that do not fit each other are told, and no device is asked."""

import json
import subprocess
import sys

import pytest

from configs import door
from train import evaluate
from train.core import conflicts

STOP = {"metric": "heldout_loss"}


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(batch={"length": 65}), "batch.length=65 .* model.max_length=64"),
    (dict(model={"vocab_size": 258}), "tokenizer.vocab_size=259 is more than"),
    (
      dict(batch={"size": 12}),
      "size=12 does not divide over 8 .*multiple of 8",
    ),
    (dict(train={"n_micro": 2}), "n_micro=2 does not divide the 1 rows"),
    (
      dict(mesh={"data": 1, "tensor": 4, "rules": "tensor"}),
      "'kv_heads' of size 2 .* not divisible by tensor=4",
    ),
    (
      dict(mesh={"data": 1, "fsdp": 3}, batch={"size": 9}),
      "'embed' of size 32 .* not divisible by fsdp=3",
    ),
    (
      dict(mesh={"data": -1, "expert": 2}),
      "place nothing on expert=2",
    ),
    (
      dict(mesh={"data": 4, "stage": 2, "pipeline": {"n_repeats": 2}}),
      "2 layers .* do not fill 4 chunks",
    ),
    (
      dict(
        mesh={"data": 4, "stage": 2, "pipeline": {"n_repeats": 2}},
        model={"n_layers": 4},
      ),
      "1 parts make no whole groups of 2 stages.*train.n_micro a multiple",
    ),
    (
      dict(
        data={"formats": ("instruction",)},
        batch={"packing": "whole"},
        eval={"during": ("compression",)},
      ),
      "eval has compression, which measure whole texts",
    ),
    (dict(mesh={"pipeline": {}}), "mesh.stage=1 makes none: leave it out"),
    (
      dict(mesh={"data": 4, "stage": 2}, model={"scanned": False}),
      "scanned=False keeps every layer apart",
    ),
    (
      dict(optim={"streamed": True}, model={"scanned": False}),
      "model.scanned=False stacks none",
    ),
    (
      dict(optim={"streamed": True}, mesh={"data": 4, "stage": 2}),
      "mesh.stage=2 has them on different devices",
    ),
    (
      dict(mesh={"data": 4, "stage": 2}, model={"dtype": "float16"}),
      "float16 with mesh.stage=2",
    ),
    (
      dict(mesh={"data": 1, "tensor": 2}, batch={"length": 31}),
      "batch.length=31 is not divisible by tensor=2",
    ),
    (
      dict(
        mesh={"data": 1, "context": 2, "context_order": "zigzag"},
        batch={"length": 30},
      ),
      "length=30 is not divisible by 4, the pieces",
    ),
    (
      dict(
        mesh={"data": 1, "context": 4, "context_exchange": "ulysses"},
      ),
      "2 kv heads do not divide over 4 shards",
    ),
    (dict(schedule={"warmup_steps": 6}), "warmup_steps=6 never reaches"),
    (dict(optim={"no_decay": ("*bais*",)}), "matches no parameter"),
    (dict(optim={"bias_speed": 0.1}), "bias_speed=0.1 moves nothing"),
    (dict(objective={"ahead_weight": 0.3}), "ahead_weight=0.3 .*ahead=False"),
    (
      dict(optim={"mup_width": 16}, model={"tied": True}),
      "with a tied head",
    ),
    (
      dict(train={"diloco": {"round_steps": 4}}),
      "train.steps=6 ends within a round: .* round_steps=4",
    ),
    (
      dict(train={"diloco": {"round_steps": 3}, "eval_every_steps": 2}),
      "train.eval_every_steps=2 ends within a round",
    ),
    (
      dict(train={"diloco": {"round_steps": 3}}, optim={"ema": 0.9}),
      "optim.ema=0.9 averages what one replica trains",
    ),
    (dict(train={"stop_early": STOP}), "never asked at .*eval_every_steps=0"),
    (
      dict(train={"stop_early": STOP, "eval_every_steps": 2}),
      "'heldout_loss' is reported by no evaluator",
    ),
    (
      dict(
        train={"stop_early": {"metric": "loss"}, "eval_every_steps": 2},
        eval={"during": ("perplexity",)},
      ),
      "metric='loss' .* choose one of heldout_loss, perplexity",
    ),
    (
      dict(checkpoint={"keep_best": {}}),
      "keep_best is never asked at .*eval_every_steps=0",
    ),
    (
      dict(checkpoint={"keep_best": {}}, train={"eval_every_steps": 2}),
      "keep_best.metric='heldout_loss' is reported by no evaluator",
    ),
    (
      dict(eval={"final": ("samples",)}, generate={"max_tokens": 64}),
      "max_tokens=64 leaves no room",
    ),
  ],
)
def test_what_does_not_fit_is_told(page, changes, said):
  with pytest.raises(ValueError, match=said):
    conflicts.check(page(**changes))


def test_what_fits_passes(page):
  conflicts.check(page())
  conflicts.check(page(), n_devices=8)
  conflicts.check(page(mesh={"data": -1}), n_devices=4)
  stop = {"stop_early": STOP, "eval_every_steps": 2}
  conflicts.check(page(train=stop, eval={"during": ("perplexity",)}))


def test_the_devices_are_counted_when_they_are_known(page):
  config = page(mesh={"data": -1})
  with pytest.raises(ValueError, match="does not divide over 3 shards"):
    conflicts.check(config, n_devices=3)
  with pytest.raises(ValueError, match="needs 8 devices and there are 4"):
    conflicts.check(page(), n_devices=4)


def test_an_entrypoint_is_asked_for_the_sections_it_has(page):
  settings = page(batch={"length": 65}).to_dict()
  config = door.build(settings, evaluate.SECTIONS)
  with pytest.raises(ValueError, match="length=65"):
    conflicts.check(config)
  few = {"generate": evaluate.SECTIONS["generate"]}
  conflicts.check(door.build(settings, few))


def test_no_device_is_asked(page, tmp_path):
  """In a process of its own: no backend is started."""
  path = tmp_path / "config.json"
  path.write_text(json.dumps(page().to_dict()))
  program = f"""
from jax._src import xla_bridge
from configs import door
from train import pretrain
from train.core import conflicts
conflicts.check(door.load({str(path)!r}, pretrain.SECTIONS))
assert not xla_bridge._backends
"""
  subprocess.run([sys.executable, "-c", program], check=True)
