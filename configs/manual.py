"""What --help shows, and which setting a misspelt one means."""

import dataclasses
import difflib
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags

from configs import fields


def write(
  doc: str, own_flags: Iterable[flags.Flag], sections: fields.Sections
) -> str:
  """Writes the purpose of an entrypoint, its flags and every setting."""
  lines = [doc, "", "Flags"]
  for flag in own_flags:
    default = f" = {flag.default}" if flag.default not in ("", None) else ""
    lines.append(_row(f"--{flag.name}", flag.flag_type() + default, flag.help))
  lines += ["", "Settings, as --config.SECTION.FIELD=VALUE"]
  for section, choice in sections.items():
    is_picked = isinstance(choice, Mapping)
    for name, cls in (choice if is_picked else {"": choice}).items():
      lines += ["", f"{section}.name={name}" if is_picked else section]
      if fields.presets(cls):
        lines.append(_row("preset", " | ".join(fields.presets(cls)), ""))
      lines += _rows(cls, "")
  return "\n".join(lines)


def _rows(cls: type, prefix: str) -> list[str]:
  """Describes the fields of a dataclass and of those nested in it."""
  rows = []
  settable = fields.hints_of(cls)
  for field in dataclasses.fields(cls):
    if field.name not in settable:
      continue
    hint = settable[field.name]
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
      default = field.default_factory()
    what = fields.show(hint)
    nested = fields.dataclass_in(hint)
    if default is not dataclasses.MISSING and not (nested and default):
      what += f" = {default}" if default != "" else " = ''"
    comment = fields.comments(cls).get(field.name, "")
    rows.append(_row(prefix + field.name, what, comment))
    rows += _rows(nested, f"{prefix}{field.name}.") if nested else []
  return rows


def _row(name: str, what: str, comment: str) -> str:
  """Lays out three columns; what is too wide moves the rest a line down."""
  head = f"  {name:<16} {what}"
  first = textwrap.wrap(head, 80, subsequent_indent=" " * 19)
  rest = textwrap.wrap(comment, 80 - 40)
  if rest and len(head) < 40:
    first = [f"{head:<40}{rest.pop(0)}"]
  return "\n".join([*first, *(" " * 40 + line for line in rest)])


def nearest(
  key: str, page: Mapping[str, Any], sections: fields.Sections
) -> str:
  """Says which setting a misspelt one most likely means."""
  section, *path = key.removeprefix("config.").split(".")
  choice = sections.get(section)
  if path and isinstance(choice, Mapping):
    owners = [name for name, cls in choice.items() if fields.hint_at(cls, path)]
    if owners:
      chosen = page[section]["name"]
      return (
        f"{key} is no setting of config.{section}.name={chosen}, but of "
        f"{', '.join(owners)}."
      )
  known = {}
  for section, choice in sections.items():
    for cls in _classes(section, choice, page):
      for path in fields.paths(cls):
        hint = fields.show(fields.hint_at(cls, path.split(".")))
        known[f"config.{section}.{path}"] = hint
      if fields.presets(cls):
        known[f"config.{section}.preset"] = " | ".join(fields.presets(cls))
    if isinstance(choice, Mapping):
      known[f"config.{section}.name"] = " | ".join(choice)
  for section in set(page) - set(sections):
    for path, value in fields.leaves(page[section]):
      known[f"config.{section}.{path}"] = type(value).__name__
  best = max(known, key=lambda candidate: _likeness(key, candidate))
  return f"{key} is no setting; the nearest is {best} ({known[best]})."


def _classes(
  section: str, choice: type | Mapping[str, type], page: Mapping[str, Any]
) -> list[type]:
  """Lists what a section may become: one class if its name is known."""
  if not isinstance(choice, Mapping):
    return [choice]
  name = page.get(section, {}).get("name")
  return [choice[name]] if name in choice else list(choice.values())


def _likeness(key: str, candidate: str) -> float:
  """Compares two dotted keys: their last names, their sections, the whole.

  Initials count as the word: `learning_rate` is lr, `wd` is weight_decay.
  """
  *above, last = key.removeprefix("config.").split(".")
  *there, name = candidate.removeprefix("config.").split(".")
  same = name in (last, _initials(last)) or last == _initials(name)
  return (
    (2.0 if same else 2 * _ratio(last, name))
    + _ratio(".".join(above), ".".join(there))
    + _ratio("_".join([*above, last]), "_".join([*there, name]))
  )


def _initials(name: str) -> str:
  return re.sub(r"([a-z])[a-z0-9]*_?", r"\1", name)


def _ratio(a: str, b: str) -> float:
  return difflib.SequenceMatcher(None, a, b).ratio()
