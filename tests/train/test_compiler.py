"""What v7x's compiler is told, and that it must be."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from models import deepseek, llama, mixtral
from train.core import compiler

GATHERS = "xla_tpu_offload_gather_to_sparsecore"


def test_only_tpus_are_told_and_of_gathers_only_experts_of_that_width_on_v7x():
  v3 = deepseek.PRESETS["deepseek_v3"]
  assert not compiler.of_kind(v3, "cpu")
  assert compiler.of_kind(v3, "TPU v5")
  assert GATHERS in compiler.of_kind(v3, "TPU7x")
  for model in (
    deepseek.PRESETS["deepseek_v2"],
    mixtral.PRESETS["mixtral_8x7b"],
    dataclasses.replace(llama.PRESETS["llama2_7b"], d_model=7168),
  ):
    assert GATHERS not in compiler.of_kind(model, "TPU7x")


GATHERED = """
import json, sys
import jax, numpy as np
from jax import numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from sharding import topology
width, options = json.loads(sys.argv[1])
one = np.array(topology.parse("tpu7x:2x2x1").devices()[:1])
place = NamedSharding(Mesh(one, ("data",)), P())
tiles = lambda n: Format(Layout((0, 1, 2), ((n, 128), (2, 1))), place)
rows = jax.ShapeDtypeStruct((3, 40_960, width), jnp.bfloat16)
slots = jax.ShapeDtypeStruct((3, 32_768, 1), jnp.int32)
jax.jit(
  lambda rows, slots: jnp.take_along_axis(rows, slots, axis=1),
  in_shardings=(tiles(8), place), out_shardings=tiles(16),
).trace(rows, slots).lower(lowering_platforms=("tpu",)).compile(
  compiler_options=options
)
"""


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="no TPU compilers: make slow installs them",
)
def test_what_comes_back_from_experts_compiles_on_v7x_only_so():
  """The smallest program: where it compiles untold, nobody need be told."""
  told = compiler.of_kind(deepseek.PRESETS["deepseek_v3"], "TPU7x")
  for width, options, compiles in (
    (7168, told, True),
    (5120, {}, True),
    (7168, {}, False),
  ):
    command = [sys.executable, "-c", GATHERED, json.dumps([width, options])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == compiles, done.stderr[-2000:]
    assert compiles or "TILESPMEM spill" in done.stderr
