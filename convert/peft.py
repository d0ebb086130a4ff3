"""Adapters of peft, in and out: LoRA, rsLoRA, DoRA, IA3, prompts, prefixes.

    python -m convert.peft export --checkpoint=runs/lora --out=runs/peft
    python -m convert.peft import --src=runs/peft --checkpoint=runs/smollm2 \
      --out=runs/adapter

Theirs is adapter_config.json and adapter_model.safetensors. export takes a run
of train.lora, whose newest checkpoint it is then, or an adapter; import makes
an adapter of the base that --checkpoint names. An adapter that began as PiSSA
leaves as LoRA of twice the rank, which adds the same to the base as it was. Of
prompts, P-tuning and prefixes a file of theirs holds what the model reads, and
no network: convert/prompts.py.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from etils import epath
from flax import traverse_util

from configs import door, fields
from convert import bundle, catalogue, prompts, shards, tensors, verbs
from convert.names.row import Row
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
from models.layers import heads, stack
from models.prefix import Prefix, Prompt

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BEFORE = "base_model.model."
# Keys of theirs that are read, or that change no number.
_READ = {
  "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora",
  "target_modules", "feedforward_modules", "fan_in_fan_out", "bias",
  "task_type", "base_model_name_or_path", "inference_mode", "init_lora_weights",
  "init_ia3_weights", "peft_version", "revision", "auto_mapping",
  "ensure_weight_tying", "exclude_modules", "layers_to_transform",
  "layers_pattern", "megatron_core", "modules_to_save", "qalora_group_size",
}  # fmt: skip
# What their heads are for.
_TASKS = {"texts": "SEQ_CLS", "tokens": "TOKEN_CLS"}
_KINDS = ("LORA", "IA3", *prompts.KINDS)
# What these say where nobody asked for anything.
_NEUTRAL = {
  "bias": "none",
  "megatron_core": "megatron.core",
  "qalora_group_size": 16,
}

Own = dict[str, np.ndarray]  # the leaves of one weight of one layer, by name
Part = tuple[str, tuple[int, ...], np.ndarray]  # a leaf's name, index, numbers


def give(path: epath.Path, out: epath.Path) -> int:
  """Makes a folder of theirs of an adapter.

  Args:
    path: a run, or an adapter.
    out: the folder; must not be there, or be empty.

  Returns:
    How many tensors of theirs it has.

  Raises:
    ValueError: it is no adapter, or adapts what theirs cannot.
  """
  path = checkpoint.find(path)
  checkpoint.verify(path)
  settings = door.read(path / "config.json")
  if "adapter" not in settings:
    raise ValueError(
      f"{path} is no adapter: its config.json has no section so."
    )
  if out.exists() and any(out.iterdir()):
    raise ValueError(f"{out} is there and not empty: give another --out.")
  c = door.build(settings, checkpoint.ADAPTED)
  mine = dict(arrays.read(path / "params"))
  if isinstance(c.adapter, Prompt | Prefix):
    own = {n.removeprefix(f"{prefix.NAME}/"): x for n, x in mine.items()}
    theirs, more = prompts.give(c.adapter, c.model, own)
  else:
    theirs, more = _matrices(c, _apart(mine))
  said = {
    "base_model_name_or_path": c.base.path,
    "inference_mode": True,
    "task_type": "CAUSAL_LM",
    **more,
  }
  out.mkdir(parents=True, exist_ok=True)
  (out / _CONFIG).write_text(json.dumps(said, indent=2))
  theirs = {name: np.ascontiguousarray(x) for name, x in theirs.items()}
  data = safetensors.numpy.save(theirs, metadata={"format": "pt"})
  (out / _WEIGHTS).write_bytes(data)
  return len(theirs)


def take(src: epath.Path, base: epath.Path, out: epath.Path) -> adapters.Config:
  """Makes an adapter of a folder of theirs.

  Args:
    src: the folder.
    base: the checkpoint that it adapts.
    out: must not be there, or be empty.

  Returns:
    Its config.

  Raises:
    ValueError: something of it is not known here, or does not fit the base.
  """
  base = checkpoint.find(base)
  model = checkpoint.config(base)
  try:
    settings = dict(json.loads((src / _CONFIG).read_text()))
  except (ValueError, TypeError, OSError) as error:
    raise ValueError(f"{src} has no {_CONFIG} to read: {error}.") from error
  _check(src, settings)
  there = shards.tensors(src / _WEIGHTS)
  if settings["peft_type"] in prompts.KINDS:
    config, own = prompts.take(src, settings, there, model)
    parts = [(f"{prefix.NAME}/{name}", (), x) for name, x in own.items()]
  else:
    model = _answering(model, settings, there)
    config, parts = _parts(src, settings, there, model)
  wanted, _ = adapters.own(config, dataclasses.replace(model, scanned=True))
  leaves = arrays.by_path(wanted)
  _check_layers(src, leaves, parts)
  _lay(out, base, model, config, leaves, parts)
  return config


def _matrices(
  c: door.Config, mine: dict[str, Own]
) -> tuple[Own, dict[str, Any]]:
  """Their tensors for what is beside matrices, and what their config says."""
  saved = {n: mine.pop(n) for n in [*mine] if adapters.WHOLE in mine[n]}
  pieces = {piece.parts[0].name: piece for piece in _heads(c.model)}
  rows = _rows(c.model)
  places = tensors.Places(dataclasses.replace(c.model, scanned=True))
  theirs = {
    f"{_BEFORE}{pieces[name].theirs}": pieces[name].join([own[adapters.WHOLE]])
    for name, own in saved.items()
  }
  modules: dict[str, tuple[str, Row, str]] = {}
  for name, own in mine.items():
    module, row = _module(rows, name, c.model)
    leaf, _ = places.of(tensors.Part(name, ()))
    modules[name] = module, row, leaf
    one = _their_lora if isinstance(c.adapter, adapters.Lora) else _their_ia3
    theirs |= {
      f"{_BEFORE}{module}.{end}": x
      for end, x in one(own, row, leaf, c.adapter).items()
    }
  said = _their_config(c.adapter, modules)
  if saved:
    whole = {pieces[name].theirs.rpartition(".")[0] for name in saved}
    said["modules_to_save"] = sorted(whole)
    said["task_type"] = _TASKS[c.model.heads.kinds[0]]
  return theirs, said


def _parts(
  src: epath.Path,
  settings: Mapping[str, Any],
  there: Mapping[str, Any],
  model: families.Config,
) -> tuple[adapters.Config, list[Part]]:
  """The config of what is beside matrices, and its parts."""
  pieces = {f"{_BEFORE}{p.theirs}": p for p in _heads(model)}
  saved = {key: there[key] for key in pieces if key in there}
  rest = {key: x for key, x in there.items() if key not in saved}
  found = _own(rest, _rows(model), src)
  places = tensors.Places(dataclasses.replace(model, scanned=True))
  sizes = tensors.shapes(dataclasses.replace(model, scanned=False))
  paths, reading = set(), set()
  parts = [
    (f"{pieces[key].parts[0].name}/{adapters.WHOLE}", (), x)
    for key, tensor in saved.items()
    for x in pieces[key].split(tensor.read())
  ]
  for name, (row, theirs) in found.items():
    shape = sizes[name].shape
    leaf, index = places.of(tensors.Part(name, shape))
    one = _our_ia3 if "ia3_l" in theirs else _our_lora
    own = one(theirs, row, leaf, shape)
    parts += [(f"{leaf}/{end}", index, x) for end, x in own.items()]
    paths.add(leaf)
    if "ia3_l" in theirs and theirs["ia3_l"].shape[0] == 1:
      reading.add(leaf)
  return _our_config(settings, paths, reading), parts


def _lay(
  out: epath.Path,
  base: epath.Path,
  model: families.Config,
  config: adapters.Config,
  leaves: Mapping[str, jax.ShapeDtypeStruct],
  parts: list[Part],
) -> None:
  """Makes the checkpoint of an adapter."""
  tokenizer = None
  if any((base / name).exists() for name in tokenizers.FILES):
    tokenizer = tokenizers.load(base)
  page = bundle.page(base, model, tokenizer)
  page["base"] = fields.plain(adapters.Base(path=str(base)))
  names = {of: name for name, of in adapters.CONFIGS.items()}
  page["adapter"] = {"name": names[type(config)], **fields.plain(config)}
  bundle.lay(
    out,
    leaves,
    {name: len(index) for name, index, _ in parts},
    parts,
    settings=page,
    said=card.make(
      0, str(base), manifest.digest(base), {}, source={"format": "peft"}
    ),
    tokenizer=tokenizer,
  )


def _apart(flat: dict[str, np.ndarray]) -> dict[str, Own]:
  """Name of a weight of one layer -> its leaves."""
  tree = stack.apart(traverse_util.unflatten_dict(flat, sep="/"))
  found: dict[str, Own] = {}
  for path, x in arrays.by_path(tree).items():
    place, _, name = path.rpartition("/")
    found.setdefault(place, {})[name] = x
  return found


def _heads(model: families.Config) -> list[tensors.Piece]:
  """Their tensors for what an adapter trains whole."""
  if not families.answers(model):
    return []
  found = tensors.pieces(model, catalogue.in_files(model))
  return [p for p in found if p.parts[0].name.startswith("heads/")]


def _answering(
  model: families.Config, settings: Mapping[str, Any], there: Mapping[str, Any]
) -> families.Config:
  """The model with the heads that an adapter of theirs brings.

  Raises:
    ValueError: these are no heads for labels.
  """
  saved = settings.get("modules_to_save") or []
  if not saved or families.answers(model):
    return model
  kinds = {task: kind for kind, task in _TASKS.items()}
  kind = kinds.get(settings.get("task_type"))
  # Theirs names all that a head may be called, and holds the one that is.
  keys = {f"{_BEFORE}{name}.weight" for name in saved}
  found = [there[key] for key in keys & there.keys()]
  if kind is None or len(found) != 1:
    raise ValueError(
      f"modules_to_save={saved} with task_type={settings.get('task_type')!r}: "
      "one head, for labels of texts or of tokens, is known here."
    )
  labels = heads.Labels(kinds=(kind,), n_labels=found[0].shape[0])
  return dataclasses.replace(model, heads=labels)


def _rows(model: families.Config) -> dict[str, tuple[str, Row]]:
  """Name of ours -> their module, and how the one is the other."""
  pieces = tensors.pieces(model, catalogue.in_files(model))
  return {
    piece.parts[0].name: (piece.theirs.removesuffix(".weight"), piece.row)
    for piece in pieces
    if len(piece.parts) == 1 and piece.row.n_in and not piece.row.n_copies
  }


def _module(rows, name: str, model: families.Config) -> tuple[str, Row]:
  if name not in rows:
    raise ValueError(
      f"{name} shares a tensor with others in transformers, or has none there: "
      "peft cannot adapt it alone."
    )
  if name == "embed/table" and getattr(model, "tied", False):
    raise ValueError(
      "the head is the embedding here, and its adapter serves both; theirs are "
      "adapted apart. Leave embed/table out of adapter.paths."
    )
  return rows[name]


def _their_lora(own: Own, row: Row, name: str, config: adapters.Lora) -> Own:
  a, b = own["a"], own["b"]
  if "a0" in own:
    a = np.concatenate([a, own["a0"]], -1)
    b = np.concatenate([b, -own["b0"]], 0)
  a, b = a.reshape(-1, a.shape[-1]).T, b.reshape(len(b), -1).T
  if name == "embed/table":
    return {"lora_embedding_A": a, "lora_embedding_B": b}
  if name == "head/table":  # whose rows are outputs
    a, b = b.T, a.T
  found = {"lora_A.weight": a, "lora_B.weight": b}
  if "magnitude" in own:
    found["lora_magnitude_vector"] = own["magnitude"].reshape(-1)
  return found


def _our_lora(theirs: Own, row: Row, name: str, shape: tuple[int, ...]) -> Own:
  if name == "embed/table":
    a, b = theirs["lora_embedding_A"].T, theirs["lora_embedding_B"].T
  else:
    a, b = theirs["lora_A.weight"].T, theirs["lora_B.weight"].T
    if name == "head/table":
      a, b = b.T, a.T
  rank = a.shape[-1]
  own = {
    "a": a.reshape(*shape[: row.n_in], rank),
    "b": b.reshape(rank, *shape[row.n_in :]),
  }
  if "lora_magnitude_vector" in theirs:
    magnitude = theirs["lora_magnitude_vector"]
    own["magnitude"] = magnitude.reshape(shape[row.n_in :])
  return own


def _their_ia3(own: Own, row: Row, name: str, config: adapters.IA3) -> Own:
  flat = own["scale"].reshape(-1)
  return {"ia3_l": flat[None] if config.reads(name) else flat[:, None]}


def _our_ia3(theirs: Own, row: Row, name: str, shape: tuple[int, ...]) -> Own:
  flat = theirs["ia3_l"]
  of_inputs = flat.shape[0] == 1
  side = shape[: row.n_in] if of_inputs else shape[row.n_in :]
  return {"scale": flat.reshape(side)}


def _their_config(
  a: adapters.Config, modules: Mapping[str, tuple[str, Row, str]]
) -> dict[str, Any]:
  """What adapter_config.json says of what is beside matrices."""
  said = {
    "bias": "none",
    "target_modules": sorted(module for module, _, _ in modules.values()),
    # GPT-2's Conv1D keeps [in, out].
    "fan_in_fan_out": any(
      not row.transposed and not leaf.endswith("table")
      for _, row, leaf in modules.values()
    ),
  }
  if isinstance(a, adapters.IA3):
    reading = [module for module, _, leaf in modules.values() if a.reads(leaf)]
    return {
      **said,
      "peft_type": "IA3",
      "feedforward_modules": sorted(reading),
      "init_ia3_weights": True,
    }
  rank, alpha = a.rank, a.alpha
  if a.init == "pissa":  # the same strength at twice the rank
    alpha *= 2**0.5 if a.stabilized else 2
    rank *= 2
  return {
    **said,
    "peft_type": "LORA",
    "r": rank,
    "lora_alpha": alpha,
    "lora_dropout": a.dropout,
    "use_rslora": a.stabilized,
    "use_dora": a.decomposed,
    "init_lora_weights": True,
  }


def _our_config(
  settings: Mapping[str, Any], paths: set[str], reading: set[str]
) -> adapters.Config:
  if settings["peft_type"] == "IA3":
    return adapters.IA3(
      paths=tuple(sorted(paths - reading)), reading=tuple(sorted(reading))
    )
  return adapters.Lora(
    paths=tuple(sorted(paths)),
    rank=settings["r"],
    alpha=float(settings["lora_alpha"]),
    dropout=float(settings.get("lora_dropout", 0.0)),
    stabilized=bool(settings.get("use_rslora", False)),
    decomposed=bool(settings.get("use_dora", False)),
  )


def _own(
  there: Mapping[str, Any], rows: Any, src: epath.Path
) -> dict[str, tuple[Row, Own]]:
  """Name of ours, unscanned -> its row, and the tensors of theirs for it."""
  by_module = {module: (name, row) for name, (module, row) in rows.items()}
  found: dict[str, tuple[Row, Own]] = {}
  for key, tensor in there.items():
    if key.endswith(
      ".base_layer.weight"
    ):  # theirs of the base come with tables
      print(f"passed over, for it is the base's: {key}")
      continue
    module, _, end = key.removeprefix(_BEFORE).rpartition(".")
    if end == "weight":
      module, _, end = module.rpartition(".")
      end += ".weight"
    if module not in by_module:
      raise ValueError(
        f"{src} has {key}, for which the base has no weight: it adapts another "
        "model, or a tensor that holds several weights here."
      )
    name, row = by_module[module]
    found.setdefault(name, (row, {}))[1][end] = tensor.read()
  return found


def _check(src: epath.Path, settings: Mapping[str, Any]) -> None:
  kind = settings.get("peft_type")
  if kind not in _KINDS:
    raise ValueError(
      f"{src} is of peft_type={kind!r}, and {', '.join(_KINDS)} are known."
    )
  read, neutral = _READ, _NEUTRAL
  if kind in prompts.KINDS:
    read, neutral = prompts.READ, prompts.NEUTRAL
  changed = [
    f"{key}={value!r}"
    + (f" (known: {neutral[key]!r})" if key in neutral else "")
    for key, value in settings.items()
    if value and (key not in read or value != neutral.get(key, value))
  ]
  if changed:
    raise ValueError(
      f"{src} asks for {', '.join(changed)}, which is not known here."
    )


def _check_layers(src: epath.Path, leaves: Any, parts: Any) -> None:
  """Checks that all layers of a path are adapted, and with the right shapes."""
  for name, leaf in leaves.items():
    mine = [(index, x) for of, index, x in parts if of == name]
    n_wanted = leaf.shape[0] if mine and mine[0][0] else 1
    if len(mine) != n_wanted:
      raise ValueError(
        f"{src} adapts {len(mine)} of {n_wanted} layers at {name}: here it is "
        "all of them or none."
      )
    wrong = [x.shape for i, x in mine if x.shape != leaf.shape[len(i) :]]
    if wrong:
      raise ValueError(
        f"{src} has {wrong[0]} for {name}, and the base {leaf.shape}."
      )


def _import() -> None:
  out = epath.Path(verbs.given(verbs.OUT))
  src, base = verbs.given(verbs.SRC), verbs.given(verbs.CHECKPOINT)
  config = take(epath.Path(src), epath.Path(base), out)
  print(f"{out}: {config}")


def _export() -> None:
  path, out = verbs.given(verbs.CHECKPOINT), epath.Path(verbs.given(verbs.OUT))
  print(f"{out}: {give(epath.Path(path), out)} of their tensors")


if __name__ == "__main__":
  verbs.run({"import": _import, "export": _export}, __doc__)
