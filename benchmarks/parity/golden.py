"""Makes tests/golden/transformers.npz: what `transformers` gives for each case.

    python -m benchmarks.parity.golden            writes it
    python -m benchmarks.parity.golden --check    compares it with a new one
Stored are the tokens, the logits, and a sketch of every leaf's gradient; the
weights come from seeds. `make test` then needs no torch.
"""

import sys

import numpy as np

from benchmarks.parity import cases, hf


def make() -> dict[str, np.ndarray]:
  """The arrays of all cases, computed by `transformers`."""
  arrays = {}
  for name, config in cases.CASES.items():
    logits, gradients = hf.run(config)
    arrays[f"{name}/tokens"] = cases.batch(config).tokens
    arrays[f"{name}/logits"] = np.float32(logits)
    arrays[f"{name}/gradients"] = cases.sketch(gradients)
  return arrays


def differences(
  stored: dict[str, np.ndarray], made: dict[str, np.ndarray]
) -> list[str]:
  """The keys whose arrays are not the same to 1e-5 of their largest value."""
  far = [
    key
    for key in stored.keys() & made.keys()
    if stored[key].shape != made[key].shape
    or np.abs(stored[key] - made[key]).max() > 1e-5 * np.abs(made[key]).max()
  ]
  return sorted(far) + sorted(stored.keys() ^ made.keys())


def main() -> None:
  """Writes or checks; exit 1 when the check fails."""
  arrays = make()
  if sys.argv[1:] == ["--check"]:
    different = differences(cases.stored(), arrays)
    print(f"{len(arrays)} arrays,", *(different or ["all the same"]))
    sys.exit(bool(different))
  np.savez_compressed(cases.STORED, **arrays)
  n_bytes = cases.STORED.stat().st_size
  print(f"{cases.STORED}: {len(arrays)} arrays, {n_bytes:,} bytes")


if __name__ == "__main__":
  main()
