"""Where the rows and texts of a run end up: one protocol, and the files of it.

metrics.jsonl has a row a line, samples.txt the texts; whoever wants to know what
a run said reads those. TensorBoard (board.py), W&B and MLflow (services.py) are
sinks, too.
"""

import json
import re
from typing import Any, NamedTuple, Protocol, runtime_checkable

from etils import epath

Row = dict[str, Any]  # step, kind, and numbers by name
_HEAD = re.compile(r"^--- step (\d+), (\S+)\n", re.M)


class Text(NamedTuple):
  """What was written at a step."""

  step: int
  name: str
  text: str


class Past(NamedTuple):
  """What a run goes on behind.

  Attributes:
    step: that it goes on from.
    rows: up to there; and below the texts.
    texts: up to there.
    is_cut: whether there were others behind, which count no more.
  """

  step: int
  rows: list[Row]
  texts: list[Text]
  is_cut: bool


@runtime_checkable
class Sink(Protocol):
  """A place for what a run says; one thread calls it."""

  def begin(self, past: Past) -> None:
    """Goes on behind a past, and forgets what it has beyond."""
    ...

  def row(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Takes numbers of one step."""
    ...

  def text(self, text: Text) -> None:
    """Takes a text."""
    ...

  def flush(self) -> None:
    """Nothing comes for a while."""
    ...

  def close(self) -> None:
    """Writes what is left; `begin` may follow."""
    ...


class Jsonl:
  """metrics.jsonl and samples.txt; what a disk refuses is tried again."""

  def __init__(self, workdir: epath.Path):
    self._workdir = workdir
    self._past = Past(0, [], [], False)
    self._rows = self._texts = None

  def begin(self, past: Past) -> None:
    """Drops what came after the step."""
    self.close()
    self._past = past
    self._open()

  def row(self, step: int, kind: str, values: dict[str, float]) -> None:
    """Writes a line."""
    self._open()
    line = json.dumps({"step": step, "kind": kind, **values})
    self._rows.write(line + "\n")

  def text(self, text: Text) -> None:
    """Writes a text behind a head."""
    self._open()
    self._texts.write(_told(text))

  def flush(self) -> None:
    """Lets readers see what is written."""
    for file in (self._rows, self._texts):
      if file is not None:
        file.flush()

  def close(self) -> None:
    """Ends both files."""
    files, self._rows, self._texts = (self._rows, self._texts), None, None
    for file in files:
      if file is not None:
        file.close()

  def _open(self) -> None:
    if self._rows is not None:
      return
    lines = [json.dumps(row) + "\n" for row in self._past.rows]
    path = _put(self._workdir / "metrics.jsonl", "".join(lines))
    texts = "".join(map(_told, self._past.texts))
    self._texts = _put(self._workdir / "samples.txt", texts).open("a")
    self._rows = path.open("a")
    self._past = self._past._replace(rows=[], texts=[])  # they may be many


def _put(path: epath.Path, text: str) -> epath.Path:
  part = path.with_name(f"{path.name}.part")  # a kill tears no log
  part.write_text(text)
  return part.replace(path)


def _told(text: Text) -> str:
  return f"--- step {text.step}, {text.name}\n{text.text}\n"


def rows(workdir: epath.Path) -> list[Row]:
  """The rows of metrics.jsonl so far; a torn last line is left out."""
  path = workdir / "metrics.jsonl"
  found = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      found.append(json.loads(line))
    except ValueError:
      break
  return found


def points(rows: list[Row], kind: str, key: str) -> list[tuple[int, float]]:
  """Step and value of what rows of a kind say."""
  return [(r["step"], r[key]) for r in rows if r["kind"] == kind and key in r]


def texts(workdir: epath.Path) -> list[Text]:
  """The texts of samples.txt so far."""
  path = workdir / "samples.txt"
  parts = _HEAD.split(path.read_text() if path.exists() else "")[1:]
  return [
    Text(int(step), name, text.removesuffix("\n"))
    for step, name, text in zip(*[iter(parts)] * 3, strict=True)
  ]


def past(workdir: epath.Path, step: int) -> Past:
  """What a run said that goes on from a step."""
  said, written = rows(workdir), texts(workdir)
  kept = [row for row in said if row["step"] <= step]
  shown = [text for text in written if text.step <= step]
  n_cut = len(said) + len(written) - len(kept) - len(shown)
  return Past(step, kept, shown, n_cut > 0)
