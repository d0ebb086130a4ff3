"""The door of every entrypoint: pages and flags in, dataclasses out.

    SECTIONS = {"model": models.FAMILIES, "train": loop.Config}

    def main(config: door.Config, workdir: epath.Path) -> int | None: ...

    if __name__ == "__main__":
      door.run(main, SECTIONS)

`SECTIONS` maps a section of the page to the dataclass it becomes, or to a
mapping from which the section's key `name` picks one. A key `preset` starts
from `PRESETS[preset]` beside the class; the other keys change it. Sections of
the page that an entrypoint does not name are left alone.

    --config=PAGE.py[:arg]           a page, or a resolved config.json
    --workdir=DIR                    without --config, DIR/config.json is read
    --config.SECTION.FIELD=VALUE     typed by the dataclass, listed or not

Further flags of an entrypoint are absl's (`flags.DEFINE_...` at its top).

Exit codes: 0 done, 1 crash, 2 a mistake in the settings, 130 interrupted, and
whatever `main` returns (75: preempted, start again). A ValueError or OSError
raised by a line of this repository is a person's mistake: its message is
printed in at most five lines. Any other keeps its traceback.
"""

import contextlib
import copy
import dataclasses
import difflib
import hashlib
import json
import logging as logging_lib
import os
import pathlib
import runpy
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from absl import app, flags, logging
from etils import epath

from configs import common, fields, manual

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_DIGEST = "sha256"  # of all else in a config.json
_CONFIG = flags.DEFINE_string(
  "config", "", "page PATH.py[:arg], or a resolved config.json"
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "", "checkpoint directory: made, resumed or read"
)


# (page, overrides) to what is built of them.
Fill = Callable[
  [Mapping[str, Any], Iterable[str]], tuple[dict[str, Any], list[str]]
]


@dataclasses.dataclass(frozen=True)
class Config:
  """A resolved page: `config.optim` is the built dataclass of that section."""

  sections: Mapping[str, Any]
  names: Mapping[str, str]  # section -> its key `name`, where it has one

  def __getattr__(self, section: str) -> Any:
    try:
      return self.__dict__["sections"][section]
    except KeyError:
      raise AttributeError(f"no section {section!r} in the config") from None

  def to_dict(self) -> dict[str, dict[str, Any]]:
    """Gives plain data: `json.dumps` of it is what `load` reads."""
    return {
      section: {
        **({"name": self.names[section]} if section in self.names else {}),
        **fields.plain(value),
      }
      for section, value in self.sections.items()
    }

  def __str__(self) -> str:
    blocks = []
    for section, values in self.to_dict().items():
      pairs = [f"{key}={value}" for key, value in fields.leaves(values)]
      line = f"{section}: {'  '.join(pairs)}"
      blocks.append(textwrap.fill(line, 80, subsequent_indent="  "))
    return "\n".join(blocks)


def run(
  main: Callable[[Config, epath.Path | None], int | None],
  sections: fields.Sections,
  *,
  needs_workdir: bool = True,
  fill: Fill | None = None,
) -> NoReturn:
  """Runs an entrypoint: reads flags and page, calls main, exits.

  Args:
    main: takes the config and the workdir, returns the exit code.
    sections: that it reads.
    needs_workdir: False where a config is enough; main's is None then.
    fill: takes the page and the overrides, and gives them back with sections
      that come from elsewhere.
  """

  def start(overrides: list[str]) -> int | None:
    if _CONFIG.value and not needs_workdir and not _WORKDIR.value:
      return main(build(read(_CONFIG.value), sections, overrides), None)
    if not _WORKDIR.value:
      raise ValueError("--workdir=DIR is missing; --help lists every flag.")
    workdir = epath.Path(_WORKDIR.value)
    if _CONFIG.value:
      page = read(_CONFIG.value)
    elif (workdir / "config.json").exists():
      page = read(workdir / "config.json")
    else:
      raise ValueError(
        f"--config is missing and {workdir} holds no config.json: "
        "give --config=configs/PAGE.py, or the workdir of a run."
      )
    if fill is not None:
      page, overrides = fill(page, overrides)
    return main(build(page, sections, overrides), workdir)

  def parse(argv: list[str]) -> list[str]:
    if {"--help", "-help", "-h"} & set(argv):
      flags.FLAGS.mark_as_parsed()
      print(manual.write(*_purpose(main), sections))
      sys.exit(0)
    rest, overrides = split_overrides(argv)
    try:
      unread = flags.FLAGS(rest)[1:]
    except flags.Error as error:
      raise ValueError(str(error)) from error
    if unread:
      raise ValueError(f"unexpected argument {unread[0]!r}: flags start by --.")
    return overrides

  with plain_mistakes():
    _quiet_libraries()
    app.run(start, flags_parser=parse)


def _quiet_libraries() -> None:
  """Lets our own log lines through, plainly; of others only the warnings."""
  handler = logging.get_absl_handler()
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler.setFormatter(logging_lib.Formatter("%(message)s"))
  handler.addFilter(
    lambda record: (
      record.levelno >= logging_lib.WARNING or _is_ours(record.pathname)
    )
  )


@contextlib.contextmanager
def plain_mistakes() -> Iterator[None]:
  """Prints a person's mistake in at most five lines and exits with 2."""
  try:
    yield
  except KeyboardInterrupt:
    sys.exit(130)
  except BrokenPipeError:  # the reader left: `python -m data.show | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
  except (ValueError, OSError) as error:
    if not _raised_here(error):
      raise
    lines = f"error: {error}".splitlines()
    lines = lines if len(lines) <= 5 else [*lines[:4], "..."]
    print("\n".join(lines), file=sys.stderr)
    sys.exit(2)


def _raised_here(error: BaseException) -> bool:
  """Tells whether the innermost Python frame is a line of this repository.

  The methods of paths do not count: `path.write_text` on a full disk is ours.
  """
  files = [
    f.f_code.co_filename for f, _ in traceback.walk_tb(error.__traceback__)
  ]
  paths = (f"etils{os.sep}epath", f"{os.sep}pathlib", f"{os.sep}shutil")
  return _is_ours([f for f in files if not any(p in f for p in paths)][-1])


def _is_ours(file: str) -> bool:
  path = pathlib.Path(file).resolve()
  return path.is_relative_to(_ROOT) and "site-packages" not in path.parts


def _purpose(main: Callable[..., Any]) -> tuple[str, list[flags.Flag]]:
  """Finds the docstring and the flags of the module that defines main."""
  is_main = main.__module__ == "__main__"
  owner = sys.argv[0] if is_main else main.__module__
  own = flags.FLAGS.get_key_flags_for_module(owner)
  doc = (sys.modules[main.__module__].__doc__ or "").strip()
  return doc, [flags.FLAGS["config"], flags.FLAGS["workdir"], *own]


def split_overrides(argv: Iterable[str]) -> tuple[list[str], list[str]]:
  """Parts `--config.KEY=VALUE` (or `KEY VALUE`) from the other arguments."""
  rest, overrides = [], []
  arguments = iter(argv)
  for argument in arguments:
    key = argument.lstrip("-").removeprefix("config.")
    if not argument.startswith(("--config.", "-config.")):
      rest.append(argument)
    elif "=" in key:
      overrides.append(key)
    else:
      overrides.append(f"{key}={next(arguments, '')}")
  return rest, overrides


def load(path: os.PathLike | str, sections: fields.Sections) -> Config:
  """Builds the config of a resolved config.json, which is data, never code."""
  if not str(path).endswith(".json"):
    raise ValueError(f"{path} is no .json file: only those are loaded as data.")
  return build(read(path), sections)


def read(spec: os.PathLike | str) -> dict[str, Any]:
  """Reads PAGE.py[:arg] by running it, or a config.json, to plain data."""
  name, is_page, arg = str(spec).partition(".py:")
  path = epath.Path(f"{name}.py" if is_page else name)
  if not path.exists():
    folder = path.parent
    beside = [p.name for p in folder.iterdir()] if folder.exists() else []
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0)
    hint = f"nearest there: {near[0]}" if near else "nothing lies there"
    raise ValueError(f"there is no file {path}; {hint}.")
  if path.suffix == ".py":
    return run_page(path, arg)[1].to_dict()
  try:
    page = dict(json.loads(path.read_text()))
  except (ValueError, TypeError, OSError) as error:
    raise ValueError(f"{path} is no config: {error}") from error
  if page.pop(_DIGEST, digest := _digest(page)) != digest:
    raise ValueError(
      f"{path} is not as it was written: its sha256 differs. Take the "
      "config.json of a checkpoint (--config=WORKDIR/checkpoints/STEP/"
      f"config.json); or, if you changed it, remove its line {_DIGEST!r}."
    )
  return page


def ask_page(spec: str, name: str) -> Any:
  """What another function of PAGE.py[:arg] gives: a sweep, a search.

  Raises:
    ValueError: there is no such page, it has no such function, or that gives
      nothing.
  """
  stem, _, arg = str(spec).partition(".py:")
  path = epath.Path(f"{stem.removesuffix('.py')}.py")
  has = path.exists() and f"def {name}(" in path.read_text()
  found = run_page(path, arg, name)[1] if has else None
  if not found:
    raise ValueError(
      f"{path} has no {name}(arg) that gives something: configs/sweeps/micro.py "
      "shows how it is written."
    )
  return found


def write(path: epath.Path, settings: Mapping[str, Any]) -> None:
  """Writes a resolved config with its own digest, whole or not at all."""
  text = json.dumps({**settings, _DIGEST: _digest(settings)}, indent=1)
  part = path.parent / f"{path.name}.part"
  part.write_text(text)
  part.replace(path)


def _digest(settings: Mapping[str, Any]) -> str:
  text = json.dumps({k: v for k, v in settings.items() if k != _DIGEST})
  return hashlib.sha256(text.encode()).hexdigest()


def run_page(
  path: epath.Path, arg: str, name: str = "get_config"
) -> tuple[dict[str, Any], Any]:
  """Runs a page and calls a function of it.

  Returns:
    All names of the page, and what the function gave.

  Raises:
    ValueError: what fails in it, told with its line.
  """
  try:
    names = runpy.run_path(str(path))
    return names, names[name](arg) if arg else names[name]()
  except Exception as error:
    frames = traceback.walk_tb(error.__traceback__)
    lines = [n for f, n in frames if f.f_code.co_filename == str(path)]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    words = " ".join(str(error).split())
    raise ValueError(f"{place}: {type(error).__name__}: {words}") from error


def build(
  page: Mapping[str, Any],
  sections: fields.Sections,
  overrides: Iterable[str] = (),
) -> Config:
  """Makes the dataclasses of a page.

  Args:
    page: section -> field -> plain value, with the keys `name` and `preset`.
    sections: what the entrypoint asks for.
    overrides: "SECTION.FIELD=VALUE", the later one wins.

  Raises:
    ValueError: an unknown key (with the nearest one), a wrong type, a value
      that a dataclass refuses.
  """
  page = copy.deepcopy(dict(page))
  known = sorted({*sections, *common.SECTIONS})
  for section in page:
    if section not in known:
      near = difflib.get_close_matches(section, known, n=1, cutoff=0)[0]
      raise ValueError(
        f"config.{section} is no section; the nearest is config.{near}."
      )
    _section(page, section)
  for section, choice in sections.items():
    if isinstance(choice, fields.Choice):
      page[section] = {"name": choice.default, **_section(page, section)}
  try:
    # What picks the class goes first, for it types the other overrides.
    for override in sorted(overrides, key=lambda o: not _picks(o)):
      _override(page, sections, *override.split("=", 1))
    built, names = {}, {}
    for section, choice in sections.items():
      values = _section(page, section)
      cls = _choose(section, choice, values)
      if isinstance(choice, Mapping):
        names[section] = values.pop("name")
      base = _preset(section, cls, values)
      built[section] = fields.make(cls, values, f"config.{section}", base)
  except fields.UnknownKey as error:
    raise ValueError(manual.nearest(error.key, page, sections)) from None
  return Config(built, names)


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
  """Maps each dotted key whose value differs to both values, None: absent."""
  left, right = (dict(fields.leaves(c.to_dict())) for c in (a, b))
  return {
    key: (left.get(key), right.get(key))
    for key in {**left, **right}
    if left.get(key) != right.get(key)
  }


def agree(
  config: Config,
  path: epath.Path,
  sections: fields.Sections,
  fixed: Iterable[str],
  say: Callable[[str], None],
) -> None:
  """Compares a config with the one that a checkpoint was made with.

  Args:
    config: what shall be done now.
    path: the checkpoint.
    sections: of the entrypoint.
    fixed: sections, or keys, that must be the same; what differs elsewhere is
      said.
    say: takes a line.

  Raises:
    ValueError: a difference in a fixed section.
  """
  kept = path / "config.json"
  changed = differences(load(kept, sections), config)
  fixed = {*fixed}
  wrong = [k for k in changed if fixed & {k, k.split(".")[0]}]
  if wrong:
    was, now = changed[wrong[0]]
    raise ValueError(
      f"{path} was made with {wrong[0]}={was!r}, and now it is {now!r}"
      + (f" ({len(wrong) - 1} more differ)" if wrong[1:] else "")
      + f": go on with --config={kept}, or choose another --workdir."
    )
  for key, (was, now) in changed.items():
    say(f"unlike {path}: {key} was {was!r}, is {now!r}")


def _section(page: Mapping[str, Any], section: str) -> dict[str, Any]:
  values = page.get(section, {})
  if not isinstance(values, Mapping):
    raise ValueError(f"config.{section}={values!r}: expected key: value pairs.")
  return dict(values)


def _picks(override: str) -> bool:
  key = override.partition("=")[0]
  return key.count(".") == 1 and key.endswith((".name", ".preset"))


def _override(
  page: dict[str, Any], sections: fields.Sections, key: str, text: str
) -> None:
  """Writes one typed override into the page."""
  section, *path = key.split(".")
  place = f"config.{key}"
  if section not in sections:
    if path and key in dict(fields.leaves(page)):
      return  # another entrypoint's section
    raise fields.UnknownKey(place)
  if not path:
    raise ValueError(f"{place} is a section: set {place}.FIELD=VALUE.")
  values = page[section] = _section(page, section)
  if path == ["name"] and isinstance(sections[section], Mapping):
    values["name"] = text
    return
  cls = _choose(section, sections[section], values)
  if path == ["preset"] and fields.presets(cls):
    values["preset"] = text
    return
  hint = fields.hint_at(cls, path)
  if hint is None:
    raise fields.UnknownKey(place)
  for name in path[:-1]:
    values[name] = dict(values.get(name) or {})
    values = values[name]
  values[path[-1]] = fields.parse(text, hint, place)


def _choose(
  section: str, choice: type | Mapping[str, type], values: Mapping[str, Any]
) -> type:
  """Picks the dataclass of a section, by its key `name` where it has one."""
  if not isinstance(choice, Mapping):
    return choice
  if values.get("name") not in choice:
    given = f"={values['name']}" if "name" in values else " is missing"
    raise ValueError(
      f"config.{section}.name{given}: choose one of {', '.join(choice)}."
    )
  return choice[values["name"]]


def _preset(section: str, cls: type, values: dict[str, Any]) -> Any:
  """Takes the key `preset` from a section and finds what it names."""
  name = values.pop("preset", None)
  if name is None:
    return None
  known = fields.presets(cls)
  if values.keys() >= fields.hints_of(cls).keys():
    raise ValueError(
      f"config.{section}.preset={name} would change nothing: every field is "
      "given already, as in a resolved config. Start from a page."
    )
  if name not in known:
    raise ValueError(
      f"config.{section}.preset={name}: "
      f"choose one of {', '.join(known) or '(it has none)'}."
    )
  return known[name]
