"""The checkpoint that a run begins from: the section `base` of its config.

It gives the page its sections `model` and `tokenizer`; what the page says of
the model goes before. The run's own checkpoints name it, with the digest of its
manifest.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath
from flax import traverse_util

from configs import door, fields
from models import arrays, checkpoint, families, manifest
from models.layers import stack
from sharding.rules import Layout

_HEADS = "heads/"  # a base may lack these, or have others
_WORDS = "head/table"  # which a decoder lacks that has others


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Where it lies."""

  path: str  # a checkpoint, or a run, whose newest it is then

  def __post_init__(self):
    fields.check(self)


class Parent(NamedTuple):
  """What a checkpoint says of the one that it comes from."""

  path: str
  sha256: str  # of its manifest


def fill(
  page: Mapping[str, Any], overrides: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
  """Gives a page the model and the tokenizer of its base; for `door.run`.

  Args:
    page: plain data.
    overrides: "SECTION.FIELD=VALUE".

  Returns:
    The page, with the very checkpoint as base.path, and the other overrides.

  Raises:
    ValueError: there is no such checkpoint.
  """
  page = {name: dict(section) for name, section in page.items()}
  here = [o.partition("=")[2] for o in overrides if o.startswith("base.path=")]
  named = here[-1] if here else page.get("base", {}).get("path")
  overrides = [o for o in overrides if not o.startswith("base.path=")]
  if not named:
    return page, overrides  # told with the other fields that are missing
  own = page.get("model", {})
  if not epath.Path(named).exists() and "name" in own:
    return page, overrides  # a run goes on, whose checkpoints are whole
  path = checkpoint.find(epath.Path(named))
  kept = door.read(path / "config.json")
  page["base"] = {**page.get("base", {}), "path": str(path)}
  page["model"] = {**kept["model"], **own}
  if "tokenizer" in kept:
    size = kept["tokenizer"]["vocab_size"]
    saved = {"kind": "saved", "path": str(path), "vocab_size": size}
    page["tokenizer"] = {**saved, **page.get("tokenizer", {})}
  return page, overrides


def parent(path: str | None, workdir: epath.Path) -> Parent | None:
  """The base of a run, if any; where it has checkpoints, as the newest names it.

  Raises:
    ValueError: the base is not the one that the run began from, or is not there
      though the run has yet to begin.
  """
  if path is None:
    return None
  steps = checkpoint.steps(workdir)
  if not steps:
    found = checkpoint.find(epath.Path(path))
    return Parent(str(found), manifest.digest(found))
  newest = workdir / "checkpoints" / str(steps[-1])
  said = json.loads((newest / "card.json").read_text())
  began = Parent(said["parent"], said["parent_sha256"])
  now = epath.Path(path)
  if now.exists():
    now = checkpoint.find(now)
    if (found := manifest.digest(now)) != began.sha256:
      raise ValueError(
        f"{newest} began from {began.path} with the manifest "
        f"{began.sha256[:12]}, and {now} has {found[:12]}: give base.path the "
        "checkpoint that it was, or choose another --workdir."
      )
  return began


def read(
  path: epath.Path,
  model: families.Config,
  layout: Layout,
  seed: int,
  say: Callable[[str], None],
) -> Any:
  """The parameters of the base, each where it shall live.

  Heads that it lacks are drawn from the seed, and told, as are those of it that
  the model does not have. Stacked layers become single ones where the model is
  unscanned.

  Raises:
    ValueError: it is damaged, or of another shape.
  """
  checkpoint.verify(path)
  there = arrays.describe(path / "params")
  as_there = model
  if hasattr(model, "scanned"):
    is_stacked = any("/layers/" in name for name in there)
    as_there = dataclasses.replace(model, scanned=is_stacked)
  wanted = traverse_util.flatten_dict(
    checkpoint.places(as_there, layout), sep="/"
  )
  fresh = {
    name: leaf
    for name, leaf in wanted.items()
    if name.startswith(_HEADS)
    and (name not in there or there[name].shape != leaf.shape)
  }
  spare = {n for n in there if n.startswith((_HEADS, _WORDS))} - {*wanted}
  spare |= {*fresh}
  for names, what in (
    (spare & {*there}, f"heads of {path} that are left out"),
    ({*fresh}, f"heads that {path} does not have, drawn anew"),
  ):
    if names:
      say(f"{what}: {', '.join(sorted(names))}")
  old = {name: leaf for name, leaf in wanted.items() if name not in fresh}
  old = traverse_util.unflatten_dict(old, sep="/")
  params = arrays.restore(path / "params", old, casts=True, spare=spare)
  if fresh:
    params = _with_drawn(as_there, params, fresh, seed)
  if as_there == model:
    return params
  if model.scanned:
    raise ValueError(
      f"{path} keeps its layers apart, and model.scanned=True stacks them: give "
      "model.scanned=False."
    )
  places = jax.tree.map(lambda x: x.sharding, checkpoint.places(model, layout))
  return jax.jit(stack.apart, out_shardings=places)(params)


def _with_drawn(
  model: families.Config, params: Any, fresh: Mapping[str, Any], seed: int
) -> Any:
  """Parameters with the leaves of some paths, as the model begins with them."""

  def draw(key):
    drawn = traverse_util.flatten_dict(families.init(model, key), sep="/")
    return {name: drawn[name] for name in fresh}

  places = {name: leaf.sharding for name, leaf in fresh.items()}
  new = jax.jit(draw, out_shardings=places)(jax.random.key(seed))
  flat = traverse_util.flatten_dict(params, sep="/") | new
  return traverse_util.unflatten_dict(flat, sep="/")
