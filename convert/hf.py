"""Checkpoints of transformers, in and out.

    python -m convert.hf export --checkpoint=runs/quick --out=runs/theirs
    python -m convert.hf import --src=runs/theirs --out=runs/ours

import reads a folder that save_pretrained wrote, or that was downloaded:
config.json, safetensors, tokenizer; and leaves a checkpoint. export takes a run,
whose newest checkpoint it is then, or a checkpoint, and leaves such a folder.

  --dtype      float32, bfloat16 or float16, of the numbers on the disk; they
               keep their own where it is not said
  --max_shard  GB of one file of weights when exporting; 5

Both work tensor by tensor, in the memory of one. A key, a value or a tensor
that the other side does not have is named and refused. No code of a checkpoint
runs; pickles are not opened.
"""

import functools
import json

import jax
from absl import flags
from etils import epath
from jax import numpy as jnp

from convert import bundle, catalogue, shards, tensors, verbs, vocabulary
from convert.settings import Settings
from data import tokenizer as tokenizers
from models import arrays, checkpoint, families, manifest

_MAX_SHARD = flags.DEFINE_float(
  "max_shard", 5.0, "GB of one file", lower_bound=1e-6
)


def take(src: epath.Path, out: epath.Path, dtype: str = "") -> families.Config:
  """Makes a checkpoint of a folder of theirs.

  Args:
    src: the folder.
    out: the checkpoint; must not be there.
    dtype: of the numbers on the disk; "" keeps their own.

  Returns:
    The config of the model.

  Raises:
    ValueError: something of it is not known here, missing, or damaged.
  """
  try:
    settings = json.loads((src / "config.json").read_text())
    read = Settings(dict(settings))
  except (ValueError, TypeError, OSError) as error:
    raise ValueError(f"{src} has no config.json to read: {error}.") from error
  config = catalogue.read(read)
  if _stretching(config) == "longrope":
    print(
      "LongRoPE: its factors are chosen by model.max_length="
      f"{config.max_length} for texts of all lengths; theirs takes the short "
      f"ones up to {config.rope_scaling.original_length} tokens."
    )
  there = shards.find(src)
  pieces = [
    tensors.pieces(config, rows)
    for rows in (catalogue.in_files(config), catalogue.rows(config))
  ]
  found = bundle.match(config, pieces, there)
  passed = catalogue.unused(config)
  left = {name: there[name] for name in there if name not in found}
  unused = [name for name in left if passed.fullmatch(name)]
  bundle.check_surplus(
    {name: left[name] for name in left if name not in unused},
    {name: there[name] for name in found},
    config.vocab_size,
  )
  if unused:
    print(f"passed over, as the model does: {', '.join(unused)}"[:200])
  tokenizer = vocabulary.read(src, settings)
  files = {t.file.name: t.file for t in there.values()}
  files["config.json"] = src / "config.json"
  source = {
    "format": "transformers",
    "model_type": settings["model_type"],
    "files": {name: shards.digest(file) for name, file in files.items()},
  }
  return bundle.write(
    out,
    config,
    found,
    there,
    dtype=dtype,
    tokenizer=tokenizer,
    source=source,
  )


def give(
  path: epath.Path, out: epath.Path, dtype: str = "", max_bytes: int = 5 * 10**9
) -> list[str]:
  """Makes a folder of theirs of a checkpoint.

  Args:
    path: a run, or a checkpoint.
    out: the folder; must not be there, or be empty.
    dtype: of the numbers; "" keeps their own.
    max_bytes: of one file of weights.

  Returns:
    The names of the files.

  Raises:
    ValueError: a damaged checkpoint, or a model that theirs do not have.
  """
  path = checkpoint.find(path)
  if problem := manifest.verify(path):
    raise ValueError(f"{path} is damaged: {problem}. Take an older checkpoint.")
  if out.exists() and any(out.iterdir()):
    raise ValueError(f"{out} is there and not empty: give another --out.")
  config = checkpoint.config(path)
  settings = catalogue.theirs(config)
  source = arrays.Source(path / "params")
  places = tensors.Places(config)
  pieces = tensors.pieces(config, catalogue.in_files(config))
  if lacking := tensors.missing(config, pieces):
    raise ValueError(
      f"transformers has no tensor for {lacking[0].name} of {path}."
    )
  by_name = {piece.theirs: piece for piece in pieces}

  def describe(piece):
    types = [source.leaves[places.of(p)[0]].dtype for p in piece.parts]
    kept = functools.reduce(jnp.promote_types, types)
    return jax.ShapeDtypeStruct(piece.shape, dtype or kept)

  def read(name):
    piece = by_name[name]
    return piece.join([source.read(*places.of(part)) for part in piece.parts])

  out.mkdir(parents=True, exist_ok=True)
  wanted = {name: describe(piece) for name, piece in by_name.items()}
  written = shards.write(out, wanted, max_bytes, read)
  settings["torch_dtype"] = wanted[pieces[0].theirs].dtype.name
  if any((path / name).exists() for name in tokenizers.FILES):
    ids = vocabulary.write(tokenizers.load(path), out)
    if settings.get("pad_token_id") is not None:
      ids.pop("pad_token_id")  # theirs counts positions from it
    settings |= ids
  (out / "config.json").write_text(json.dumps(settings, indent=2))
  return written


def _stretching(config: families.Config) -> str | None:
  return getattr(getattr(config, "rope_scaling", None), "kind", None)


def _import() -> None:
  src, out = (
    epath.Path(verbs.given(verbs.SRC)),
    epath.Path(verbs.given(verbs.OUT)),
  )
  config = take(src, out, verbs.DTYPE.value)
  print(f"{out}: {families.name(config)}, computing in {config.dtype}")


def _export() -> None:
  path, out = verbs.given(verbs.CHECKPOINT), epath.Path(verbs.given(verbs.OUT))
  n_bytes = int(_MAX_SHARD.value * 1e9)
  written = give(epath.Path(path), out, verbs.DTYPE.value, n_bytes)
  print(f"{out}: {', '.join(written)}")


if __name__ == "__main__":
  verbs.run({"import": _import, "export": _export}, __doc__)
