"""One process, eight virtual CPU devices, strict numerics, checked shapes."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  # On a busy machine eight devices may wait long for each other; 40 by default.
  + " --xla_cpu_collective_call_terminate_timeout_seconds=300"
  # One exchange after the other: of a busy CPU's devices some took one of two
  # first, others the other, and all waited to the end.
  + " --xla_cpu_enable_concurrency_optimized_scheduler=false"
)

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook(
  ["models", "sharding", "data", "train", "convert", "serve"],
  "beartype.beartype",
)

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling is most of the suite's time: what was compiled before is read back.
_CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
jax.config.update("jax_disable_most_optimizations", True)  # compiles 2x faster
flags.FLAGS.mark_as_parsed()  # grain reads its flags


@pytest.fixture(autouse=True, scope="module")
def _room():
  """Lets go of compiled programs before they fill the memory.

  Each of XLA:CPU's keeps maps of memory, of which Linux gives 65,530 to a process.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
    jax.clear_caches()


@pytest.fixture
def one_device(monkeypatch):
  """Commands that a test starts see one device, as a laptop has."""
  monkeypatch.delenv("XLA_FLAGS")
