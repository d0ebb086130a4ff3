"""An adapter and its base to one checkpoint, which needs neither.

    python -m convert.merge --checkpoint=runs/lora --out=runs/merged

--checkpoint is a run of train.lora, whose newest checkpoint it is then, or an
adapter. Onto a base that is held in blocks (base.weights=nf4) it is merged as
that computes: onto the numbers that the blocks stand for, not onto those that
they were made of. The sums are fp32, and so are the numbers on the disk where
--dtype says nothing else: bfloat16 rounds away what a small adapter adds.
"""

import functools
import json
import sys

import jax
from absl import flags
from etils import epath

from configs import door
from convert import bundle, verbs
from data import tokenizer as tokenizers
from models import (
  adapters,
  arrays,
  card,
  checkpoint,
  families,
  manifest,
  prefix,
)


def merge(path: epath.Path, out: epath.Path, dtype: str = "") -> None:
  """Makes a checkpoint of an adapter and its base.

  Args:
    path: a run, or an adapter.
    out: must not be there, or be empty.
    dtype: of the numbers on the disk; "" is float32.

  Raises:
    ValueError: it is no adapter, or its base is not what it was.
  """
  path = checkpoint.find(path)
  settings = door.read(path / "config.json")
  if "adapter" not in settings:
    raise ValueError(
      f"{path} is no adapter, but whole already: its config.json has no section "
      "adapter."
    )
  config, params = checkpoint.load(path)
  if prefix.length(params):
    raise ValueError(
      f"{path} begins every text with {prefix.length(params)} trained tokens, "
      "which no matrix holds: serve the adapter with its base as it is."
    )
  whole = jax.jit(functools.partial(adapters.merge, families.axes(config)))
  merged = arrays.by_path(whole(params))
  leaves = {
    name: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)
    for name, x in merged.items()
  }
  tokenizer = None
  if any((path / name).exists() for name in tokenizers.FILES):
    tokenizer = tokenizers.load(path)
  step = json.loads((path / "card.json").read_text())["step"]
  bundle.lay(
    out,
    leaves,
    {},
    ((name, (), jax.device_get(x)) for name, x in merged.items()),
    settings=bundle.page(out, config, tokenizer),
    said=card.make(step, str(path), manifest.digest(path), {}),
    tokenizer=tokenizer,
  )


def main(argv: list[str]) -> None:
  """Reads the flags and merges."""
  if {"-h", "--help"} & set(argv):
    print(__doc__.strip())
    return
  try:
    rest = flags.FLAGS(argv)[1:]
  except flags.Error as error:
    raise ValueError(str(error)) from error
  if rest:
    raise ValueError(f"unexpected argument {rest[0]!r}: flags start by --.")
  path, out = verbs.given(verbs.CHECKPOINT), verbs.given(verbs.OUT)
  merge(epath.Path(path), epath.Path(out), verbs.DTYPE.value)
  print(f"{out}: merged")


if __name__ == "__main__":
  with door.plain_mistakes():
    main(sys.argv)
