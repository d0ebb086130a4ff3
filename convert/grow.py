"""A checkpoint with more control tokens, as chat templates want them.

    python -m convert.grow vocabulary --checkpoint=runs/quick --out=runs/grown \\
      --tokens=TOKEN,TOKEN

The rows of all ids keep their bits; each new one is the mean of them, which is
as likely as a token of the vocabulary is on average. Where the table has no row
left, it grows to the next multiple of 64, which meshes can divide.
"""

import dataclasses
import json
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from etils import epath

from convert import bundle, verbs, vocabulary
from data import tokenizer as tokenizers
from models import arrays, card, checkpoint, families, leaves, manifest

MULTIPLE = 64  # of the rows of a table that grows

_TOKENS = flags.DEFINE_list("tokens", [], "names of the control tokens to add")


def grow(path: epath.Path, out: epath.Path, names: Sequence[str]) -> int:
  """Writes the checkpoint with more ids.

  Args:
    path: a run, or a checkpoint.
    out: the folder; must not be there, or be empty.
    names: of the control tokens.

  Returns:
    The ids that the model has then.

  Raises:
    ValueError: a damaged checkpoint, or tokens that its tokenizer cannot take.
  """
  path = checkpoint.find(path)
  if problem := manifest.verify(path):
    raise ValueError(f"{path} is damaged: {problem}. Take an older checkpoint.")
  if out.exists() and any(out.iterdir()):
    raise ValueError(f"{out} is there and not empty: give another --out.")
  if len({*names}) < len(names) or not all(names):
    raise ValueError(f"--tokens={','.join(names)}: give each name once.")
  old = tokenizers.load(path)
  new = vocabulary.grown(old, names)
  config = checkpoint.config(path)
  size = config.vocab_size
  if new.vocab_size > size:
    size = -(-new.vocab_size // MULTIPLE) * MULTIPLE
  config = dataclasses.replace(config, vocab_size=size)
  part = out.parent / f"{out.name}.part"
  if part.exists():
    part.rmtree()
  (part / "params").mkdir(parents=True)
  _write(path / "params", part / "params", config, old.vocab_size)
  new.save(part)
  settings = bundle.page(out, config, new)
  (part / "config.json").write_text(json.dumps(settings, indent=1))
  said = card.make(0, str(path), manifest.digest(path), {})
  (part / "card.json").write_text(json.dumps(said, indent=1))
  manifest.seal(part)
  if out.exists():
    out.rmdir()
  part.rename(out)
  return size


def _write(
  src: epath.Path, out: epath.Path, config: families.Config, n_old: int
) -> None:
  """Copies leaf after leaf, those that list the vocabulary with more rows."""
  names = dict(
    zip(
      leaves.paths(families.axes(config)),
      jax.tree.leaves(families.axes(config), is_leaf=leaves.is_names),
      strict=True,
    )
  )
  there = arrays.describe(src)
  rows = {n for n in there if names[n][0] == "vocab"}

  def shape(name: str) -> tuple[int, ...]:
    own = there[name].shape
    return (config.vocab_size, *own[1:]) if name in rows else own

  wanted = {
    name: jax.ShapeDtypeStruct(shape(name), leaf.dtype)
    for name, leaf in there.items()
  }
  sink = arrays.Sink(out, wanted, {})
  for name, x in arrays.read(src):
    if name in rows:
      x = with_rows(x, config.vocab_size, n_old)
    sink.write(name, (), x)


def with_rows(table: np.ndarray, size: int, n_old: int) -> np.ndarray:
  """A table of so many rows: the first ones as they were, the others their mean."""
  mean = table[:n_old].mean(0, dtype=np.float64).astype(table.dtype)
  new = np.broadcast_to(mean, (size - n_old, *table.shape[1:]))
  return np.concatenate([table[:n_old], new])


def _vocabulary() -> None:
  path, out = verbs.given(verbs.CHECKPOINT), epath.Path(verbs.given(verbs.OUT))
  if not _TOKENS.value:
    raise ValueError("--tokens=NAME,NAME is missing; --help says more.")
  size = grow(epath.Path(path), out, _TOKENS.value)
  print(f"{out}: {size} ids")


if __name__ == "__main__":
  verbs.run({"vocabulary": _vocabulary}, __doc__)
