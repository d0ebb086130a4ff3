"""What can be wrong with a setting: its letters, type, range, company."""

import contextlib
import dataclasses
import random
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from configs import door, fields, ranges

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890")


def typos(word: str, rng: random.Random) -> list[str]:
  """Three: a letter dropped, one doubled, two swapped or the key beside hit."""
  i, j = rng.randrange(len(word)), rng.randrange(len(word))
  dropped = word[:i] + word[i + 1 :]
  doubled = word[:j] + word[j] + word[j:]
  k = rng.randrange(len(word))
  row = next((row for row in _KEYBOARD if word[k] in row), "")
  beside = row[row.find(word[k]) - 1] if row else "x"
  missed = word[:k] + beside + word[k + 1 :]
  swaps = [n for n in range(len(word) - 1) if word[n] != word[n + 1]]
  if swaps and rng.random() < 0.5:
    n = rng.choice(swaps)
    missed = word[:n] + word[n + 1] + word[n] + word[n + 2 :]
  return [typo for typo in (dropped, doubled, missed) if typo]


def leaves(cls: type) -> list[str]:
  """Dotted names of the fields that are no dataclasses."""
  every = fields.paths(cls)
  return [p for p in every if not any(q.startswith(f"{p}.") for q in every)]


def every_key(sections: fields.Sections) -> Iterator[str]:
  """Every key that some choice of the sections has."""
  for section, choice in sections.items():
    for cls in choice.values() if isinstance(choice, dict) else [choice]:
      yield from (f"{section}.{path}" for path in fields.paths(cls))
    yield from (f"{section}.name", f"{section}.preset")


def least(cls: type) -> dict[str, Any]:
  """A value for each field that has no default."""
  hints = fields.hints_of(cls)
  return {name: _some(hints[name]) for name in fields.required(cls)}


def _some(hint: Any) -> Any:
  for value in (*_choices(hint), 0.01, 8):
    with contextlib.suppress(ValueError):
      return fields.cast(value, hint, "")
  raise ValueError(f"no value is known for {fields.show(hint)}.")


def _members(hint: Any) -> list[Any]:
  """The types of a union; of a tuple those of its elements, in tuples."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return [m for part in typing.get_args(hint) for m in _members(part)]
  return [hint]


def _kinds(hint: Any) -> set[type]:
  """The plain types of values that a field may have."""
  found = set()
  for member in _members(hint):
    origin = typing.get_origin(member)
    if origin is Annotated:
      member = typing.get_args(member)[0]
    elif origin is typing.Literal:
      member = str
    elif dataclasses.is_dataclass(member) or origin is dict:
      member = dict
    found.add(origin if origin is tuple else member)
  return found | ({int} if float in found else set())


def of_wrong_type(hint: Any) -> list[Any]:
  """Plain values of other types."""
  values = (None, True, 3, 1.5, "x", [[]], {"x": 1}, "a\0b")
  kinds = {type(None) if k is types.NoneType else k for k in _kinds(hint)}
  as_lists = kinds | ({list} if tuple in kinds else set())
  wrong = [v for v in values if type(v) not in as_lists or v in ([[]], "a\0b")]
  return [v for v in wrong if not (v == {"x": 1} and dict in kinds)]


def unreadable(hint: Any) -> list[str]:
  """Texts that spell no value of a type."""
  kinds = _kinds(hint) - {types.NoneType}
  if kinds <= {int, float}:
    return ["x", "true", "1,5", "", "0x10"] + ["1.5"] * (float not in kinds)
  return ["1", "yes", ""] if kinds == {bool} else []


def out_of_range(hint: Any) -> Iterator[Any]:
  """Just outside of both ends, far outside, and what is no number."""
  for member in _members(hint):
    origin, args = typing.get_origin(member), typing.get_args(member)
    if origin is tuple:
      yield from ((value,) for value in out_of_range(args[0]))
    if member in (int, float):  # its dataclass says what it may be
      yield from (member(-2), float("nan"), float("inf"))
      yield 2**63 if member is int else 1e39
    if origin is not Annotated:
      continue
    kind, spelt = args
    low, high = ranges.ends(spelt)
    step = 1 if kind is int else 1e-3 * max(abs(low), 1e-3)
    yield kind(low) if spelt[0] == "(" else kind(low - step)
    yield from (kind(low - 1), kind(low - 10**6))
    if high != float("inf"):
      yield kind(high) if spelt[-1] == ")" else kind(high + 1)
      yield kind(2 * high + 1)
    yield from (2**64, -(10**30)) if kind is int else (1e39, -1e39)
    yield from (float("nan"), float("inf"), float("-inf"))


def _choices(hint: Any) -> tuple[Any, ...]:
  for member in _members(hint):
    if typing.get_origin(member) is tuple:
      return _choices(typing.get_args(member)[0])
    if typing.get_origin(member) is typing.Literal:
      return typing.get_args(member)
  return ()


def no_choices(hint: Any, rng: random.Random) -> Iterator[Any]:
  """Words that a Literal does not have: nonsense, and near misses."""
  known = _choices(hint)
  for choice in [choice for choice in known if choice][:2]:
    for value in ("nonsense", choice.upper(), *typos(choice, rng)):
      if value not in known:
        is_tuple = tuple in _kinds(hint)
        yield (value,) if is_tuple else value


def clashes(c: door.Config) -> Iterator[dict[str, Any]]:
  """Settings of one or several sections that do not fit each other."""
  has = c.sections.keys()
  if "model" in has:
    heads = c.model.n_heads
    if hasattr(c.model, "rope_theta"):
      yield {"model.n_kv_heads": heads + 1}
      yield {"model.d_head": c.model.d_head + 1}
      yield {"model.window": 8, "model.pattern": ("full",)}
      yield {"model.window": None, "model.pattern": ("sliding",)}
      yield {"model.pattern": ("full",) * (c.model.n_layers + 1)}
      scaling = {"kind": "linear", "factor": 2.0, "original_length": 64}
      yield {"model.rope_scaling": scaling}
      yield {
        "model.rope_scaling": {
          "kind": "yarn",
          "factor": 2.0,
          "original_length": None,
        }
      }
    else:
      yield {"model.n_heads": heads + 1, "model.d_model": 8 * heads}
  if {"model", "batch"} <= has:
    yield {"batch.length": c.model.max_length + 1}
    yield {"model.max_length": c.batch.length - 1}
  if {"model", "tokenizer"} <= has:
    yield {"tokenizer.vocab_size": c.model.vocab_size + 1}
  if "tokenizer" in has:
    yield {"tokenizer.kind": "saved", "tokenizer.path": ""}
    yield {"tokenizer.kind": "tokenizers_bpe", "tokenizer.path": "x"}
    yield {"tokenizer.kind": "tokenizers_bpe", "tokenizer.spanning": True}
    yield {"tokenizer.kind": "bytes", "tokenizer.vocab_size": 300}
    yield {"tokenizer.kind": "sentencepiece_bpe", "tokenizer.vocab_size": 200}
  if "data" in has:
    yield {"data.weights": (1.0,) * (len(c.data.sources) + 1)}
    yield {"data.sources": ()}
  if "generate" in has:
    for cut in ("top_k", "top_p", "min_p"):
      yield {"generate.temperature": 0.0, f"generate.{cut}": 1}
    yield {"generate.stop": ("",)}
  if {"mesh", "batch", "model"} <= has:
    yield {"mesh.data": -1, "mesh.fsdp": -1}
    # An axis that a table leaves idle, more stages than layers, an order of
    # work without stages, a way to exchange where nothing is split.
    yield {"mesh.expert": 2, "mesh.fsdp": 1, "mesh.rules": "fsdp"}
    yield {"mesh.data": 1, "mesh.fsdp": 1, "mesh.stage": c.model.n_layers + 1}
    yield {"mesh.stage": 1, "mesh.pipeline": {"schedule": "gpipe"}}
    yield {"mesh.context": 1, "mesh.context_order": "zigzag"}
    yield {"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 2, "mesh.rules": "dp"}
    yield {"mesh.data": 1, "mesh.fsdp": c.batch.size + 1}
    odd = 7 if c.model.vocab_size % 7 else 11
    yield {"mesh.tensor": odd, "mesh.rules": "tensor", "mesh.fsdp": 1}
  if {"model", "eval", "generate"} <= has:
    length = {"generate.max_tokens": c.model.max_length}
    yield {"eval.during": ("samples",), **length}
    yield {"eval.final": ("samples",), "eval.prompts": ()}
  if "train" in has:
    steps = c.train.steps
    if hasattr(c.schedule, "warmup_steps"):
      yield {"schedule.warmup_steps": steps}
    yield {"train.n_micro": c.batch.size + 1}
    yield {"train.stop_early": {}, "train.eval_every_steps": 0}
    yield {"train.stop_early": {"metric": "los"}, "train.eval_every_steps": 1}
    yield {"checkpoint.keep_best": {}, "train.eval_every_steps": 0}
    yield {"checkpoint.keep_best": {}, "eval.during": ("samples",)}
    yield {"checkpoint.every_steps": 4, "checkpoint.keep_every_steps": 6}
    if hasattr(c.optim, "weight_decay"):
      yield {"optim.lr": 2.0, "optim.weight_decay": 0.5}
      yield {"optim.no_decay": ("x",), "optim.weight_decay": 0.0}
      yield {"optim.no_decay": ("no/such/leaf",), "optim.weight_decay": 1e-4}
