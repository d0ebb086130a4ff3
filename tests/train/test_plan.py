"""Plans of TPU slices that are not here: estimates, and the compilers' word."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from configs import common, door
from models import flops, llama
from sharding import topology as topologies
from train import plan
from train.core import planning, search

SMALL = (
  "model.d_model=512", "model.n_layers=4", "model.d_ff=1024",
  "model.n_heads=4", "model.n_kv_heads=2", "model.vocab_size=8192",
  "batch.size=16", "batch.length=512", "train.n_micro=1",
)  # fmt: skip


def settings(*overrides, page="llama2_7b"):
  return door.build(door.read(f"configs/{page}.py"), plan.SECTIONS, overrides)


MARKED = dict(packing="segments", noise=dict(kind="spans"))
OTHERS = {
  "lstm": ("rnn", "3m", dict(size=16, length=256)),
  "mamba2": ("mamba2", "mamba2_130m", dict(size=32, length=1024)),
  "t5": ("t5", "t5_small", dict(size=64, length=128, source_length=512, **MARKED)),
  "rnnsearch": (
    "rnnsearch", "4m", dict(size=64, length=64, source_length=64, **MARKED)
  ),
}  # fmt: skip


def of_another_kind(name, *overrides):
  family, preset, batch = OTHERS[name]
  page = door.read("configs/lstm.py")
  page["model"], page["batch"] = common.preset(family, preset), batch
  return door.build(page, plan.SECTIONS, ("mesh.data=8", *overrides))


def test_classes_are_never_more_than_all():
  """Where an estimate is above what a compiler says it takes."""
  known = {"parameters": 1.0, "activations": 5.0, "temporaries": 2.0}
  assert planning._fill(known, 4.0) == {
    "parameters": 1.0, "activations": 3.0, "temporaries": 0.0
  }  # fmt: skip
  assert planning._fill(known, 9.0)["temporaries"] == 3.0


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_stack_of_feed_forwards_is_traced(name):
  """Twice the rows keep twice as much; an LSTM: its gates, and some more."""
  size = OTHERS[name][2]["size"]
  config, more = (
    of_another_kind(name, "model.n_layers=2", f"batch.size={n}")
    for n in (size, 2 * size)
  )
  one, two = (
    planning.estimate(c, topologies.parse("v5e:2x4")).classes["activations"]
    for c in (config, more)
  )
  assert two == 2 * one
  if name == "lstm":
    model, words = config.model, size / 8 * config.batch.length
    gates = 4 * model.d_model * 4 * model.n_layers * words
    assert gates < one < 4 * gates


def test_the_state_of_a_sharded_run_is_counted_by_hand():
  """ZeRO 3 over 16: weights, two moments and a gradient, 4 bytes each."""
  config = settings("train.n_micro=1", "batch.size=16", "mesh.fsdp=16")
  found = planning.estimate(config, topologies.parse("v5e:4x4"))
  share = flops.n_params(llama.PRESETS["llama2_7b"]) * 4 / 16
  for name, n in (("parameters", 1), ("optimizer", 2), ("gradients", 1)):
    # Scales of norms are whole everywhere: 0.004 %.
    assert found.classes[name] == pytest.approx(n * share, rel=1e-3)
  assert sum(found.classes.values()) == pytest.approx(found.peak_bytes)
  micro = settings("train.n_micro=4", "batch.size=64", "mesh.fsdp=16")
  more = planning.estimate(micro, topologies.parse("v5e:4x4"))
  assert more.classes["gradients"] == 2 * found.classes["gradients"]


@pytest.mark.parametrize(
  "name, told",
  {
    "v9:2x2": "Known: v5e:1x1",
    "v5p": "Known: v5e:1x1",
    "v5e:3x3": "the nearest is v5e:",
    "": "Known: v5e:1x1",
  }.items(),
)
def test_an_unknown_slice_is_told_with_those_that_are_known(name, told):
  with pytest.raises(ValueError, match=told):
    topologies.parse(name)


def test_a_slice_has_its_devices():
  assert topologies.parse("v5p:2x2x4").n_devices == 16
  assert topologies.parse("tpu7x:2x2x1").n_devices == 8  # two to a chip
  assert topologies.parse("2*v5e:4x4").n_devices == 32


def test_what_does_not_fit_is_told_with_a_way_out():
  config = settings("model.remat=none", "train.n_micro=1", "batch.size=64")
  topology = topologies.parse("v5e:4x4")
  assert not planning.estimate(config, topology).fits
  assert search.way_out(config, topology).startswith(
    "it would fit with --config."
  )
  # The state alone is more than four chips have.
  none = search.way_out(config, topologies.parse("v5e:2x2"))
  assert none.startswith("no single setting")


@pytest.mark.slow
def test_a_search_ranks_what_fits():
  config = settings("batch.size=64")
  topology = topologies.parse("v5e:4x4")
  found = search.search(config, topology)
  seconds = [choice.step_seconds for choice in found]
  assert found and seconds == sorted(seconds)
  assert all(c.peak_bytes <= topology.chip.hbm_bytes for c in found)
  assert len({json.dumps(c.overrides) for c in found}) == len(found)


def test_the_command_estimates_in_a_line_for_programs():
  done = subprocess.run(
    [sys.executable, "-m", "train.plan", "--config=configs/llama3_8b.py"]
    + ["--topology=v5p:4x8x8", "--fast"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["fits"] and found["collectives"] is None
  assert found["peak_bytes"] <= found["limit_bytes"]


needs_compilers = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="no TPU compilers: make slow installs them",
)


@needs_compilers
@pytest.mark.slow
@pytest.mark.parametrize("slice_", ["v5e:2x2", "v5p:2x2x1"])
def test_a_step_is_compiled_for_chips_that_are_not_here(slice_):
  """S6, S7: state donated, loops counted, collectives on their axes alone."""
  made = {}
  for n_layers in (4, 8):
    config = settings(*SMALL, f"model.n_layers={n_layers}", "mesh.fsdp=4")
    made[n_layers] = planned(config, slice_)
  found = made[4]
  known = planning.estimate(config, topologies.parse(slice_))
  assert found["fits"] and found["bound"] in ("MXU", "HBM", "ICI")
  # Full remat: a forward pass again, and the rest of the model's once.
  ratio = found["hardware_flops"] / found["model_flops"]
  assert 1.1 < ratio < 1.45
  # Twice the layers: twice what they do, as the loop is counted by its turns.
  layers = made[8]["hardware_flops"] - found["hardware_flops"]
  head = 6 * 8192 * 512 * 16 * 512 / 4
  assert layers == pytest.approx(found["hardware_flops"] - head, rel=0.1)
  assert {a for c in found["collectives"] for a in c["axes"]} <= {"fsdp"}
  kinds = {c["kind"] for c in found["collectives"]}
  assert "all-gather" in kinds
  state = known.classes["parameters"] + known.classes["optimizer"]
  assert made[8]["argument_bytes"] == pytest.approx(state, rel=0.05)
  # Donated: were the state there twice, the peak would be above all this.
  assert made[8]["peak_bytes"] < 2 * state + made[8]["temporary_bytes"]


@needs_compilers
@pytest.mark.slow
@pytest.mark.parametrize(
  "page, rel",
  [("gpt2_124m", 0.1), ("mamba2", 0.1), ("t5", 0.2)],
)
def test_an_estimate_is_near_the_compilers_peak(page, rel):
  """Of the large pages, benchmarks/speed/PLANS.md says it: within 10 %."""
  if page in OTHERS:
    config = of_another_kind(page, "model.n_layers=4")
  else:
    config = settings(page=page)
  known = planning.estimate(config, topologies.parse("v5e:2x4"))
  found = planned(config, "v5e:2x4")
  assert known.peak_bytes == pytest.approx(found["peak_bytes"], rel=rel)
  assert sum(found["classes"].values()) == pytest.approx(found["peak_bytes"])


@needs_compilers
@pytest.mark.slow
def test_a_chip_alone_takes_the_kernel_with_heads_of_any_width():
  config = settings(*SMALL, "mesh.fsdp=1", "model.d_head=80")
  assert planned(config, "v5e:1x1")["kernel_flops"] > 0


@needs_compilers
@pytest.mark.slow
def test_layers_have_no_second_copy_of_their_weights_and_make_gradients_once():
  """Neither all weights in bf16 beside the loop, nor silu' in two products."""
  config = settings(*SMALL, "mesh.fsdp=4", "model.remat=full")
  text = planned(config, "v5e:2x2")["text"]
  assert "f32[4,128,1024]" in text and "bf16[4,128,1024]" not in text
  # Nor is the head gathered before it is made narrow.
  assert "bf16[8192,512]" in text
  assert not re.search(r"= f32\[\S* all-gather\(", text)
  # Forward, once more, and in the gradients of the gate and of what it lets
  # through: each of them made for two products.
  assert len(re.findall(r"= f32\[4,512,1024\]\S* exponential", text)) == 4


@needs_compilers
@pytest.mark.slow
def test_what_does_not_fit_is_the_compilers_word():
  config = settings("train.n_micro=1", "batch.size=4", "mesh.fsdp=4")
  found = planned(config, "v5e:2x2")
  assert not found["fits"]
  assert found["peak_bytes"] > found["limit_bytes"]


@needs_compilers
@pytest.mark.slow
def test_between_slices_goes_the_gradient_once_a_step():
  """Or, of replicas that train alone, their parameters once a round."""
  sizes = (
    "model.d_model=2048", "model.n_layers=2", "model.n_heads=16",
    "model.n_kv_heads=2", "mesh.replica=2", "mesh.data=1", "mesh.fsdp=16",
    "batch.size=32",
  )  # fmt: skip
  model = settings(*SMALL, *sizes).model
  table = model.vocab_size * model.d_model
  rest = flops.n_params(model) - 2 * table  # but for the norms in matrices
  for changes, n_bytes, period in (
    # The table's gradient is in fp32, the others' as they are computed.
    ((), 4 * table + 2 * (table + rest), 1),
    # That of several parts is added up in fp32, and goes when it is whole.
    (("train.n_micro=4", "batch.size=128"), 4 * (2 * table + rest), 1),
    (("train.diloco.round_steps=10", "train.steps=100"),
     4 * (2 * table + rest), 10),
  ):  # fmt: skip
    schedule = ("schedule.warmup_steps=10",) if period > 1 else ()
    config = settings(*SMALL, *sizes, *changes, *schedule)
    found = planned(config, "2*v5e:4x4")
    far = [c for c in found["collectives"] if "replica" in c["axes"]]
    wired = sum(c["wire_bytes"] for c in far)
    assert {tuple(c["axes"]) for c in far} == {("replica",)}
    # A ring of two: each receives as much as it has, a 16th of all. Norms are
    # whole on every device, and figures are small: 4 %.
    assert wired == pytest.approx(n_bytes / 16, rel=0.04)
    rate = topologies.DCN_RATE
    assert found["seconds"]["DCN"] == pytest.approx(wired / rate / period)


PLANNED = """
import json, sys
from configs import door
from sharding import topology
from train import plan
from train.core import bill, planning
sections, names, slice_ = json.loads(sys.argv[1])
page = {s: dict(v) for s, v in sections.items()}
config = door.build(page, plan.SECTIONS)
texts, read = [], planning.hlo.read
planning.hlo.read = lambda text, mesh: texts.append(text) or read(text, mesh)
found = planning.measure(config, topology.parse(slice_))
print(json.dumps({**bill.line(found), "text": texts[-1] if texts else None}))
"""


def planned(config, slice_):
  """In a process of its own: the compilers take one platform alone."""
  given = json.dumps([config.to_dict(), dict(config.names), slice_])
  done = subprocess.run(
    [sys.executable, "-c", PLANNED, given], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])
