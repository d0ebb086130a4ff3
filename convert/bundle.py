"""A checkpoint directory from what another house left, tensor by tensor.

At no time is more than one tensor in memory: each is cut into the parts of ours
that it holds, which go to the disk where they belong.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from jax import numpy as jnp

from configs import door, fields
from convert import header, tensors
from convert.tensors import Piece
from data import tokenizer as tokenizers
from data.tokenizer import Tokenizer
from models import arrays, card, families, manifest

DTYPES = ("float32", "bfloat16", "float16")
_SECTIONS = {"model": families.FAMILIES, "tokenizer": tokenizers.Config}


@runtime_checkable
class Tensor(Protocol):
  """A tensor of theirs, wherever it lies."""

  dtype: np.dtype
  shape: tuple[int, ...]

  def read(self) -> np.ndarray:
    """The numbers."""


def match(
  config: families.Config,
  spellings: Iterable[list[Piece]],
  there: Mapping[str, Tensor],
) -> dict[str, Piece]:
  """Which tensor of a file is which piece.

  Args:
    config: of the model.
    spellings: the names that its tensors may have, the likeliest first.
    there: what the file has.

  Returns:
    Name in the file -> piece; what the file has beside is not in it.

  Raises:
    ValueError: a tensor is missing, or has another shape.
  """
  spellings = list(spellings)
  found: dict[str, Piece] = {}
  taken = set()
  for piece in (piece for pieces in spellings for piece in pieces):
    parts = {(part.name, part.copy) for part in piece.parts}
    name = next((n for n in _names(piece.theirs) if n in there), None)
    if name and name not in found and not parts & taken:
      found[name] = piece
      taken |= parts
  if lacking := tensors.missing(config, found.values()):
    names = {(part.name, part.copy) for part in lacking}
    said = [
      piece.theirs
      for piece in spellings[0]
      if names & {(part.name, part.copy) for part in piece.parts}
      or names & {(part.name, None) for part in piece.parts}
    ]
    raise ValueError(
      f"the weights lack {header.few(said)}, which config.json asks for: "
      "a file of them is missing, or they are of another model."
    )
  wrong = [
    f"{name} {there[name].shape}, not {piece.shape}"
    for name, piece in found.items()
    if there[name].shape != piece.shape
  ]
  if wrong:
    raise ValueError(
      f"tensors are not as large as config.json says: {header.few(wrong)}."
    )
  return found


def _names(name: str) -> list[str]:
  """How files may call a tensor: without the model's name, or as LayerNorm had it."""
  short = name.partition(".")[2]
  old = {"weight": "gamma", "bias": "beta"}
  stem, _, last = name.rpartition(".")
  is_norm = "LayerNorm" in stem and last in old
  return [name, short, *([f"{stem}.{old[last]}"] if is_norm else [])]


def check_surplus(
  surplus: Mapping[str, Tensor], used: Mapping[str, Tensor], vocab_size: int
) -> None:
  """Sees that what is left over in a file is a table that was used under a name.

  A tied table stands in some files twice.

  Raises:
    ValueError: it is something else.
  """
  for tensor in surplus.values():
    twins = [
      other
      for other in used.values()
      if other.shape == tensor.shape and other.dtype == tensor.dtype
    ]
    is_table = tensor.shape[:1] == (vocab_size,)
    if not (is_table and any(_equal(tensor, twin) for twin in twins)):
      raise ValueError(
        f"the weights hold {header.few(surplus)}, of which the model of this "
        "config.json has no use: they are of another model, or it has parts "
        "that this house does not know."
      )


def _equal(a: Tensor, b: Tensor) -> bool:
  return a.read().tobytes() == b.read().tobytes()


def write(
  out: epath.Path,
  config: families.Config,
  found: Mapping[str, Piece],
  there: Mapping[str, Tensor],
  *,
  dtype: str,
  tokenizer: Tokenizer | None,
  source: Mapping[str, Any],
  turn: Callable[[str, np.ndarray], np.ndarray] = lambda name, x: x,
) -> families.Config:
  """Writes a whole checkpoint: a directory that is not there before its end.

  Args:
    out: must not be there, or be empty.
    config: of the model.
    found: as `match` gives it.
    there: the tensors by their names.
    dtype: of the parameters on the disk; "" keeps what they have.
    tokenizer: what its text was read with, if anything.
    source: where all that comes from, for card.json.
    turn: what to do to a tensor that is not laid as its piece is.

  Returns:
    The config, computing in the type of most of the parameters.

  Raises:
    ValueError: `out` is there already.
  """
  config = dataclasses.replace(config, scanned=True)
  leaves, n_listed = _leaves(config, found, there, dtype)
  types = [leaf.dtype.name for leaf in leaves.values() for _ in leaf.shape]
  config = dataclasses.replace(config, dtype=max(DTYPES, key=types.count))
  places = tensors.Places(config)

  def parts():
    for name, piece in found.items():
      cut = piece.split(turn(name, there[name].read()))
      for of, x in zip(piece.parts, cut, strict=True):
        yield *places.of(of), x

  lay(
    out,
    leaves,
    n_listed,
    parts(),
    settings=page(out, config, tokenizer),
    said=card.make(0, None, None, {}, source=dict(source)),
    tokenizer=tokenizer,
  )
  return config


def lay(
  out: epath.Path,
  leaves: Mapping[str, jax.ShapeDtypeStruct],
  n_listed: Mapping[str, int],
  parts: Iterable[tuple[str, tuple[int, ...], np.ndarray]],
  *,
  settings: Mapping[str, Any],
  said: Mapping[str, Any],
  tokenizer: Tokenizer | None,
) -> None:
  """Makes a checkpoint: a directory that is not there before its end.

  Args:
    out: must not be there, or be empty.
    leaves: of params/, by path.
    n_listed: as of `arrays.Sink`.
    parts: leaf, index and numbers of each part.
    settings: for config.json.
    said: for card.json.
    tokenizer: what its text was read with, if anything.

  Raises:
    ValueError: `out` is there already.
  """
  if out.exists() and any(out.iterdir()):
    raise ValueError(f"{out} is there and not empty: give another --out.")
  part = out.parent / f"{out.name}.part"
  if part.exists():
    part.rmtree()
  (part / "params").mkdir(parents=True)
  sink = arrays.Sink(part / "params", leaves, n_listed)
  for name, index, x in parts:
    sink.write(name, index, x)
  if tokenizer is not None:
    tokenizer.save(part)
  (part / "config.json").write_text(json.dumps(settings, indent=1))
  (part / "card.json").write_text(json.dumps(said, indent=1))
  manifest.seal(part)
  if out.exists():
    out.rmdir()
  part.rename(out)


def page(
  path: epath.Path, config: families.Config, tokenizer: Tokenizer | None
) -> dict[str, Any]:
  """The config.json of a checkpoint that no run has made, as plain data."""
  made = {"model": {"name": families.name(config), **fields.plain(config)}}
  if tokenizer is not None:
    made["tokenizer"] = {
      "kind": "saved",
      "path": str(path),
      "vocab_size": tokenizer.vocab_size,
    }
  return door.build(made, {key: _SECTIONS[key] for key in made}).to_dict()


def _leaves(
  config: families.Config,
  found: Mapping[str, Piece],
  there: Mapping[str, Tensor],
  dtype: str,
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, int]]:
  """The leaves on the disk, and by how many indices their parts are given."""
  places = tensors.Places(config)
  types: dict[str, np.dtype] = {}
  n_listed = {}
  for name, piece in found.items():
    for part in piece.parts:
      leaf, index = places.of(part)
      own = np.dtype(dtype) if dtype else there[name].dtype
      types[leaf] = jnp.promote_types(types.get(leaf, own), own)
      n_listed[leaf] = len(index)
  leaves = {
    name: jax.ShapeDtypeStruct(leaf.shape, types[name])
    for name, leaf in tensors.shapes(config).items()
  }
  return leaves, n_listed
