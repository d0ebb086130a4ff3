"""What a compiler is told beside the program, and why."""

from jax.sharding import Mesh

from models import families

# What a loop over layers reads in bf16 alone, compilers of TPUs would carry in
# bf16, beside the weights: 0.4 GiB of 8.2 of Llama 2 7B on 16 v5e.
_AS_WRITTEN = {"xla_jf_bf16_propagation": "false"}

# Libtpu 0.0.42.1 ends the process ("Not enough space for TILESPMEM spill") when
# v7x's sparse cores gather bf16 rows this wide, which experts give back, into
# tiles of 16 rows. Rows of 4096, 5120, 6144, 6656 and 8192 pass.
_WIDTHS = (7168,)
_ON_TENSOR_CORES = {"xla_tpu_offload_gather_to_sparsecore": "false"}


def options(model: families.Config, mesh: Mesh) -> dict[str, str]:
  """Of a step that trains this model on these devices."""
  return of_kind(model, mesh.devices.flat[0].device_kind)


def of_kind(model: families.Config, kind: str) -> dict[str, str]:
  """Of a step that trains this model on devices of a kind, as jax calls it."""
  if not kind.startswith("TPU"):
    return {}
  if kind == "TPU7x" and hasattr(model, "experts") and model.d_model in _WIDTHS:
    return _AS_WRITTEN | _ON_TENSOR_CORES
  return dict(_AS_WRITTEN)
