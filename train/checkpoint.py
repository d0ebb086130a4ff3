"""Looks into checkpoints: which there are, whether they are whole, what differs.

    python -m train.checkpoint list runs/quick
    python -m train.checkpoint verify runs/quick
    python -m train.checkpoint diff runs/quick runs/wide

Each argument is a run or a checkpoint; `diff` takes the newest of a run. All
files are read against their digests; `verify` says what is wrong, and exits
with 1 where something is. Nothing is changed, and no accelerator is touched.
"""

import json
import sys
from collections.abc import Callable

import jax
from etils import epath

from configs import door
from models import checkpoint, manifest
from train.core import difference

ROW = "{:>8}  {:<20}  {:>10}  {:<8}  {:<10}  {}"


def show(workdir: epath.Path) -> int:
  """Prints a line for each checkpoint."""
  found = _all_of(workdir)
  print(ROW.format("step", "time", "size", "verified", "parent", "metrics"))
  for path in found:
    is_whole = manifest.verify(path) is None
    card = json.loads((path / "card.json").read_text()) if is_whole else {}
    n_bytes = sum((path / name).stat().length for name in manifest.names(path))
    metrics = [f"{k} {v:.4g}" for k, v in card.get("metrics", {}).items()]
    row = (
      card.get("step", path.name),
      card.get("time", "?"),
      f"{n_bytes / 1e6:,.1f} MB",
      "yes" if is_whole else "NO",
      card.get("parent") or "-",
      "  ".join(metrics),
    )
    print(ROW.format(*row), flush=True)
  return 0


def verify(workdir: epath.Path) -> int:
  """Prints what is wrong with each; 1 where anything is."""
  problems = 0
  for path in _all_of(workdir):
    problem = manifest.verify(path)
    problems += problem is not None
    print(f"{path}: {problem or 'whole'}", flush=True)
  return int(problems > 0)


def diff(first: epath.Path, second: epath.Path) -> int:
  """Prints what differs between two checkpoints; 1 where anything does."""
  a, b = checkpoint.find(first), checkpoint.find(second)
  problems = [manifest.verify(path) for path in (a, b)]
  print(f"first      {a}: {problems[0] or 'whole'}")
  print(f"second     {b}: {problems[1] or 'whole'}")
  if any(problems):
    print("not compared: what is damaged may read as any numbers")
    return 1
  changed = difference.settings(a, b)
  for key, (was, now) in changed.items():
    print(f"config     {key}: {was!r} and {now!r}")
  left, right = difference.fingerprints(a, b)
  if left != right:
    print(f"tokenizer  {left[:12]} and {right[:12]}")
  kinds = difference.kinds(difference.leaves(a, b))
  for line in difference.table(kinds):
    print(f"leaf       {line}")
  n_leaves = sum(map(len, kinds.values()))
  n_equal = sum(len(x) for (_, what), x in kinds.items() if what == "equal")
  print(
    f"{len(changed)} settings differ; the tokenizers "
    f"{'are the same' if left == right else 'differ'}; "
    f"{n_equal} of {n_leaves} leaves are equal to the bit"
  )
  return int(bool(changed) or left != right or n_equal < n_leaves)


def _all_of(path: epath.Path) -> list[epath.Path]:
  if (path / manifest.NAME).exists():
    return [path]
  checkpoint.find(path)  # says so where there is none
  return [path / "checkpoints" / str(step) for step in checkpoint.steps(path)]


VERBS: dict[str, tuple[Callable[..., int], int]] = {
  "list": (show, 1),
  "verify": (verify, 1),
  "diff": (diff, 2),
}


def main(arguments: list[str]) -> int:
  """Does what the first argument says with the others."""
  if {"-h", "--help"} & set(arguments):
    print(__doc__)
    return 0
  jax.config.update("jax_platforms", "cpu")  # a run may hold the others
  verb, *paths = arguments or [""]
  act, n_paths = VERBS.get(verb, (None, 0))
  if act is None or len(paths) != n_paths:
    raise ValueError(
      f"expected `list W`, `verify W` or `diff W W2`, got {arguments}: W is the "
      "workdir of a run, or a checkpoint."
    )
  return act(*map(epath.Path, paths))


if __name__ == "__main__":
  with door.plain_mistakes():
    sys.exit(main(sys.argv[1:]))
