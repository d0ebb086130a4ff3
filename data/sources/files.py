"""Which files a source names: one, a folder, a pattern, a prepared data set."""

import fnmatch
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Set

from etils import epath

from data.sources.huggingface import is_saved, saved_files
from data.sources.record import File
from data.sources.tfds import is_prepared, prepared_files

# Folders that say themselves what is in them.
PREPARED = ((is_prepared, prepared_files), (is_saved, saved_files))
# Left out of "stdlib": what is not the library itself, or is missing on Debian.
NOT_LIBRARY = {"site-packages", "test", "tests", "idlelib"}


def files(source: str) -> list[File]:
  """Lists a source's files by their names within it.

  Raises:
    ValueError: it names no file, a split that is not there, or a folder from
      which shards are missing.
  """
  if source == "stdlib":
    return _stdlib()
  path, split = _split(source)
  for is_one, list_files in PREPARED:
    if is_one(path):
      return list_files(path, split)
  listed = _listed(path)
  if split:
    word = re.compile(rf"(?<![^\W_]){re.escape(split)}(?![^\W_])")
    listed = [file for file in listed if word.search(file.name)]
  if not listed:
    wanted = f" of the split {split!r}" if split else ""
    raise ValueError(
      f"data.sources: {source!r} names no file{wanted} here (looked from"
      f" {os.getcwd()}). Give a file, a folder, a pattern such as"
      " 'corpus/**/*.jsonl.gz', or 'stdlib'."
    )
  if not _is_pattern(path):
    _check_shards(path, listed)
  return sorted(listed)


def _split(source: str) -> tuple[epath.Path, str]:
  """Parts "folder#train" into the folder and the name of a split."""
  path = epath.Path(source)
  if "#" not in path.name or path.exists():
    return path, ""
  folder, _, split = source.rpartition("#")
  return epath.Path(folder), split


def _listed(path: epath.Path) -> list[File]:
  pattern = ["**"]
  if _is_pattern(path):
    fixed = next(i for i, part in enumerate(path.parts) if _is_pattern(part))
    pattern = list(path.parts[fixed:])
    path = epath.Path(*path.parts[:fixed]) if fixed else epath.Path(".")
  if not path.is_dir():
    return [File(path.name, path)] if path.exists() else []
  depth = sys.maxsize if "**" in pattern else len(pattern)
  return [
    file
    for file in _walk(path, depth)
    if _matches(file.name.split("/"), pattern)
  ]


def _is_pattern(path: os.PathLike | str) -> bool:
  return any(c in os.fspath(path) for c in "*?[")


def _stdlib() -> list[File]:
  root = epath.Path(sysconfig.get_paths()["stdlib"])
  found = _walk(root, sys.maxsize, NOT_LIBRARY)
  return sorted(file for file in found if file.name.endswith(".py"))


def _walk(
  folder: epath.Path, depth: int, left_out: Set[str] = frozenset()
) -> Iterator[File]:
  """Yields the files down to a depth; hidden ones and caches left out."""
  for path in folder.iterdir():
    if path.name.startswith(".") or path.name in {"__pycache__", *left_out}:
      continue
    if not path.is_dir():
      yield File(path.name, path)
    elif depth > 1:
      if any(is_one(path) for is_one, _ in PREPARED):
        raise ValueError(
          f"data.sources: {path} is a prepared data set with splits of its own:"
          f" name it by itself, {str(path)!r} or '{path}#train'."
        )
      for file in _walk(path, depth - 1, left_out):
        yield file._replace(name=f"{path.name}/{file.name}")


def _matches(parts: list[str], pattern: list[str]) -> bool:
  """Whether a path fits a pattern, where "**" is any number of folders."""
  if not pattern or not parts:
    return pattern in ([], ["**"]) and not parts
  head, *rest = pattern
  if head == "**":
    return _matches(parts, rest) or _matches(parts[1:], pattern)
  return fnmatch.fnmatch(parts[0], head) and _matches(parts[1:], rest)


def _check_shards(path: epath.Path, listed: list[File]) -> None:
  """Misses "x-00003-of-00010" where nine others lie."""
  names = {file.name for file in listed}
  for name in sorted(names):
    place = re.search(r"-(\d+)-of-(\d+)(?!.*-of-)", name)
    for number in range(int(place[2]) if place else 0):
      shard = f"{number:0{len(place[1])}d}"
      wanted = name[: place.start(1)] + shard + name[place.end(1) :]
      if wanted not in names:
        raise ValueError(
          f"data.sources: {path} has {name}, but {wanted} is missing. Fetch it,"
          " or name the shards that you mean by a pattern."
        )
