"""The fields of a dataclass: their types, their comments, text and JSON in.

A setting is None, bool, int, float, str, a Literal, a tuple, a dict with str
keys, or a dataclass of such; a union holds at most one dataclass. Nothing else
can be configured, so a config is data: it round-trips through JSON exactly and
can name no code. Numbers have ranges (configs/ranges.py).
"""

import ast
import collections.abc
import dataclasses
import functools
import inspect
import io
import math
import sys
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from configs import ranges


class Choice(dict):
  """What a section's key `name` may pick, and what it is where nothing does."""

  def __init__(self, options: Mapping[str, type], default: str):
    super().__init__(options)
    self.default = default


# Section of a page -> its dataclass, or what the section's key `name` may pick.
Sections = Mapping[str, type | Mapping[str, type]]

_NONES = ("None", "none", "null")
_BOOLS = {"true": True, "True": True, "false": False, "False": False}


class UnknownKey(ValueError):
  """A dotted key that no dataclass has."""

  def __init__(self, key: str):
    super().__init__(f"{key} is no setting.")
    self.key = key


def make(cls: type, values: Mapping[str, Any], key: str, base: Any = None):
  """Builds `cls` from plain values, on top of `base` where it is given.

  Args:
    cls: a dataclass.
    values: field name -> plain value; the value of a nested dataclass is a
      mapping of the fields to change.
    key: where the values stand, for messages: "config.model".
    base: an instance to change; without it the defaults of `cls` are.

  Raises:
    UnknownKey: a name that is no field.
    ValueError: a value of another type, a missing or an invalid one.
  """
  hints = hints_of(cls)
  changes = {}
  for name, value in values.items():
    place = f"{key}.{name}"
    if name not in hints:
      raise UnknownKey(place)
    nested = dataclass_in(hints[name])
    if nested and isinstance(value, Mapping):
      old = getattr(cls if base is None else base, name, None)
      old = old if isinstance(old, nested) else None
      changes[name] = make(nested, value, place, old)
    else:
      changes[name] = cast(value, hints[name], place)
  if base is None:
    lacking = [n for n in required(cls) if n not in changes]
    if lacking:
      raise ValueError(f"{key} lacks {', '.join(lacking)}: give a value.")
  try:
    if base is not None:
      return dataclasses.replace(base, **changes)
    return cls(**changes)
  except ValueError as error:
    said = str(error).removeprefix(f"{key.rpartition('.')[2]}.")
    joint = ": " if said == str(error) else "."
    raise ValueError(f"{key}{joint}{said}") from error


def check(config: Any) -> None:
  """Checks the type and the range of every field; call it in __post_init__.

  Raises:
    ValueError: the first field that does not fit.
  """
  for name, hint in hints_of(type(config)).items():
    cast(getattr(config, name), hint, name)


def cast(value: Any, hint: Any, key: str) -> Any:
  """Checks a plain value against a type; int becomes float, list tuple."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if hint is float and type(value) in (int, float) and _is_finite(value):
    return float(value)
  if hint is str and type(value) is str and _is_text(value):
    return value
  if hint in (bool, int, types.NoneType) and type(value) is hint:
    return value
  if origin is Annotated and _fits(value, args[0]):
    value = cast(value, args[0], key)
    if ranges.holds(args[1], value):
      return value
  if origin is typing.Literal and value in args:
    return value
  if origin is tuple and isinstance(value, (tuple, list)):
    parts = args[:1] * len(value) if args[1:] == (...,) else args
    if len(parts) == len(value):
      return tuple(
        cast(v, part, f"{key}[{i}]")
        for i, (v, part) in enumerate(zip(value, parts, strict=True))
      )
  if _is_mapping(hint) and isinstance(value, Mapping):
    return {k: cast(v, args[1], f"{key}.{k}") for k, v in value.items()}
  if dataclasses.is_dataclass(hint):
    if isinstance(value, hint):
      return value
    if isinstance(value, Mapping):
      return make(hint, value, key)
  if _is_union(hint):
    for option in _options(hint):
      if _fits(value, option):
        return cast(value, option, key)
  raise ValueError(f"{key}={value!r}: expected {show(hint)}.")


def _is_finite(number: float) -> bool:
  try:
    return math.isfinite(number)
  except OverflowError:  # an int beyond all floats
    return False


def _is_text(text: str) -> bool:
  """Tells whether a file's name could be it: no NUL, no half a surrogate."""
  try:
    return b"\0" not in text.encode()
  except UnicodeEncodeError:
    return False


def parse(text: str, hint: Any, key: str) -> Any:
  """Reads text from the command line as a value of a type.

  A tuple is `a,b` or a Python literal; a dict or a dataclass is a literal.
  """
  for option in _options(hint):
    value = _read(text, option)
    if value is not _UNREADABLE and _fits(value, option):
      return cast(value, option, key)
  raise ValueError(f"{key}={text}: expected {show(hint)}.")


_UNREADABLE = object()


def _read(text: str, hint: Any) -> Any:
  """Gives the plain value that text spells under one type of a union."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    return _read(text, args[0])
  if hint is str:
    return text
  if hint is types.NoneType:
    return None if text in _NONES else _UNREADABLE
  if hint is bool:
    return _BOOLS.get(text, _UNREADABLE)
  if origin is typing.Literal:
    spelled = {str(arg): arg for arg in args}
    return spelled.get(text, _UNREADABLE)
  if origin is tuple and not text.startswith(("(", "[")):
    texts = text.removesuffix(",").split(",") if text else []
    parts = args[:1] * len(texts) if args[1:] == (...,) else args
    if len(parts) != len(texts):
      return _UNREADABLE
    try:
      return tuple(
        parse(t.strip(), part, "") for t, part in zip(texts, parts, strict=True)
      )
    except ValueError:
      return _UNREADABLE
  try:
    if hint in (int, float):
      return hint(text)
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return _UNREADABLE


def _fits(value: Any, hint: Any) -> bool:
  """Tells whether a union should take this member for the value."""
  if dataclasses.is_dataclass(hint):  # its own fields are for cast to judge
    return isinstance(value, (hint, Mapping))
  if _is_mapping(hint):
    return isinstance(value, Mapping)
  try:
    cast(value, hint, "")
  except ValueError:
    return False
  return True


def _options(hint: Any) -> tuple[Any, ...]:
  """Lists the members of a union, str last: it would take every text."""
  if not _is_union(hint):
    return (hint,)
  return tuple(sorted(typing.get_args(hint), key=lambda option: option is str))


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_mapping(hint: Any) -> bool:
  return typing.get_origin(hint) in (dict, collections.abc.Mapping)


def plain(value: Any) -> Any:
  """Turns a setting into what JSON holds."""
  if dataclasses.is_dataclass(value):
    return {n: plain(getattr(value, n)) for n in hints_of(type(value))}
  if isinstance(value, (tuple, list)):
    return [plain(v) for v in value]
  if isinstance(value, Mapping):
    return {k: plain(v) for k, v in value.items()}
  return value


def chosen(config: Any) -> dict[str, Any]:
  """Maps dotted names to plain values, where these are not the defaults."""
  defaults = {}
  for f in dataclasses.fields(config):
    if f.default is not dataclasses.MISSING:
      defaults[f.name] = plain(f.default)
    elif f.default_factory is not dataclasses.MISSING:
      defaults[f.name] = plain(f.default_factory())
  missing = object()
  known = dict(leaves(defaults))
  return {
    name: value
    for name, value in leaves(plain(config))
    if known.get(name, missing) != value
  }


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
  """Maps each field that can be set to its type."""
  hints = typing.get_type_hints(cls, include_extras=True)
  return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def required(cls: type) -> list[str]:
  """Names the fields without a default."""
  return [
    f.name
    for f in dataclasses.fields(cls)
    if f.init
    and f.default is dataclasses.MISSING
    and f.default_factory is dataclasses.MISSING
  ]


def dataclass_in(hint: Any) -> type | None:
  """Finds the dataclass of a type such as `Rope | None`."""
  found = [o for o in _options(hint) if dataclasses.is_dataclass(o)]
  assert len(found) < 2, f"a union of two dataclasses reads no JSON: {hint}"
  return found[0] if found else None


def hint_at(cls: type, path: list[str]) -> Any:
  """Follows a dotted path through nested dataclasses and dicts to a type.

  Returns None where there is no such field.
  """
  hint = hints_of(cls).get(path[0])
  for name in path[1:]:
    nested = dataclass_in(hint)
    if nested:
      hint = hints_of(nested).get(name)
    elif _is_mapping(hint):
      hint = typing.get_args(hint)[1]
    else:
      return None
  return hint


def paths(cls: type) -> list[str]:
  """Lists the dotted names of all fields, nested dataclasses included."""
  found = []
  for name, hint in hints_of(cls).items():
    nested = dataclass_in(hint)
    found.append(name)
    found += [f"{name}.{below}" for below in (paths(nested) if nested else ())]
  return found


def presets(cls: type) -> dict[str, Any]:
  """Collects the instances of a class among the PRESETS beside it."""
  beside = getattr(sys.modules[cls.__module__], "PRESETS", {})
  return {n: preset for n, preset in beside.items() if type(preset) is cls}


def leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Walks nested mappings as (dotted key, value)."""
  for key, value in values.items():
    if isinstance(value, Mapping) and value:
      yield from ((f"{key}.{k}", v) for k, v in leaves(value))
    else:
      yield key, value


def show(hint: Any) -> str:
  """Spells a type as a person would write it."""
  if typing.get_origin(hint) is typing.Literal:
    return " | ".join(map(str, typing.get_args(hint)))
  if typing.get_origin(hint) is Annotated:
    plain_type, spelt = typing.get_args(hint)
    return f"{show(plain_type)} {ranges.show(spelt)}"
  if dataclasses.is_dataclass(hint) or hint in (bool, int, float, str):
    return hint.__name__
  if hint is types.NoneType:
    return "None"
  if _is_union(hint):
    return " | ".join(show(option) for option in typing.get_args(hint))
  if parts := typing.get_args(hint):
    shown = ("..." if part is ... else show(part) for part in parts)
    return f"{typing.get_origin(hint).__name__.lower()}[{', '.join(shown)}]"
  return str(hint)


@functools.cache
def comments(cls: type) -> dict[str, str]:
  """Reads the comment of each field from the source.

  It stands behind the field or, where there is none, in the lines above it; a
  field that only changes a default keeps the comment that it inherits.
  """
  found = {}
  for base in reversed(cls.__mro__[:-1]):
    source = inspect.cleandoc("\n" + inspect.getsource(base))
    alone, behind = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
      if token.type == tokenize.COMMENT:
        is_alone = token.line.lstrip().startswith("#")
        text = token.string.lstrip("# ")
        (alone if is_alone else behind)[token.start[0]] = text
    for node in ast.parse(source).body[0].body:
      if isinstance(node, ast.AnnAssign):
        lines = range(node.lineno, node.end_lineno + 1)
        words = [behind[line] for line in lines if line in behind]
        above = node.lineno - 1
        while not words and above in alone:
          above -= 1
        words += [alone[line] for line in range(above + 1, node.lineno)]
        name = node.target.id
        found[name] = " ".join(words) or found.get(name, "")
  return found
