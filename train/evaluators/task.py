"""A task: rows of a benchmark, and how each becomes a question.

A page of configs/tasks/ says where the rows are (`get_task`), how one becomes
an item (`item(row)`), and, where an answer is written freely, how it is read
out of what was written (`READINGS`). Prompts, few-shot draws and answers are
those of EleutherAI's lm-evaluation-harness 0.4, byte for byte.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from configs import door, fields
from configs.ranges import Count, Natural, NonNegative
from data import rows as tables

Row = dict[str, Any]
Reader = Callable[[str], str | None]  # what was written -> the answer in it
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OF_PAGE = "EXAMPLES"  # what a page calls its own
KINDS = ("choice", "text", "writing", "program", "label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shots:
  """Examples before the question."""

  n: Natural = 0  # of them
  # Where they are drawn; "": from the rows themselves, EXAMPLES: from the list
  # of that name in the page.
  rows: str = ""
  draw: Literal["random", "first"] = "random"  # which of them
  seed: Natural = 1234  # of the draws; lm-eval's
  # One more is drawn than shown, as lm-eval does for what has no test split.
  spare: bool = False

  def __post_init__(self):
    fields.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
  """How a long text is cut; both 0: lm-eval's rolling likelihood."""

  length: Natural = 0  # tokens read at once; 0: as many as the model does
  stride: Natural = 0  # tokens from one window to the next; 0: the length

  def __post_init__(self):
    fields.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
  """How an answer is written."""

  stop: tuple[str, ...] = ()  # strings that end it; not part of it
  max_tokens: Count = 256  # of an answer
  temperature: NonNegative = 0.0  # 0 writes the likeliest
  n_samples: Count = 1  # answers to a question
  seed: Natural = 0  # of what is drawn; each answer has a key of its own

  def __post_init__(self):
    fields.check(self)
    if self.n_samples > 1 and self.temperature == 0:
      raise ValueError(
        f"n_samples={self.n_samples} with temperature=0.0: all would be alike. "
        "Give a temperature, or n_samples=1."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What a page of configs/tasks/ says."""

  kind: Literal[*KINDS]  # how it is asked and graded
  rows: str  # file, folder or pattern: JSON lines, CSV, TSV, Parquet
  metrics: tuple[str, ...]  # what is told of it: train/evaluators/metrics.py
  item: str = "item"  # the function of the page that makes an item of a row
  limit: Natural = 0  # the first rows only; 0: all
  shots: Shots = Shots()  # of what is asked with examples
  description: str = ""  # what stands before everything
  joint: str = " "  # between a question and its answer
  # Options as they are, or listed under letters that are then the options.
  asked: Literal["texts", "letters"] = "texts"
  # Whether a user says the prompt, in the checkpoint's own chat template.
  spoken: bool = False
  windows: Windows = Windows()  # of kind "text"
  writing: Writing = Writing()  # of kinds "writing" and "program"

  def __post_init__(self):
    fields.check(self)
    for name, kinds in (
      ("asked", ("choice",)),
      ("spoken", ("writing", "text")),
      ("windows", ("text",)),
      ("writing", ("writing", "program")),
      ("shots", ("choice", "writing", "program")),
    ):
      value, default = getattr(self, name), getattr(Config, name)
      if value != default and self.kind not in kinds:
        raise ValueError(
          f"{name}={value!r} says nothing with kind={self.kind!r}: it goes with "
          f"{' and '.join(kinds)}."
        )
    if not self.metrics:
      raise ValueError("metrics=() tells nothing: name one or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """A row as a question. What does not fit the kind of task stays empty."""

  prompt: str  # what the model reads
  options: tuple[str, ...] = ()  # of which it takes the likeliest
  right: tuple[int, ...] = ()  # which of them are right
  lead: str | None = None  # what stands above options with letters; the prompt
  # The answer, as an example shows it; of a text, what is measured behind the
  # prompt, "" for the prompt itself.
  target: str = ""
  reference: str = ""  # the answer, as what was written is compared with it
  n_words: Natural = 0  # of a text; 0: as white space parts them
  n_bytes: Natural = 0  # of a text; 0: as UTF-8
  check: str = ""  # of a program: what must run behind it

  def __post_init__(self):
    if not all(0 <= i < len(self.options) for i in self.right):
      raise ValueError(
        f"right={self.right} names options, and there are {len(self.options)}."
      )


@dataclasses.dataclass(frozen=True)
class Task:
  """The items in order, and what the model reads of each."""

  name: str
  config: Config
  items: tuple[Item, ...]
  prompts: tuple[str, ...]
  readings: Mapping[str, Reader]
  digest: str  # of all of them; of what reads, the page's source

  @property
  def title(self) -> str:
    """The name, and how it was asked where pages leave a choice."""
    parts = [self.name]
    if self.config.item != "item":
      parts.append(self.config.item)
    if self.config.kind == "choice":
      parts.append(self.config.asked)
    if self.config.shots.n:
      parts.append(f"{self.config.shots.n}shot")
    return "_".join(parts)


def load(spec: str) -> Task:
  """Reads the page PATH.py[:arg] and the rows that it names.

  Raises:
    ValueError: there is no page or no rows, or a row is not as the page wants.
  """
  name, is_page, arg = spec.partition(".py:")
  path = epath.Path(f"{name}.py" if is_page else name)
  if not path.exists():
    known = sorted(p.stem for p in path.parent.glob("[a-z]*.py"))
    raise ValueError(
      f"--task={spec}: there is no {path}; beside it lie {', '.join(known)}."
    )
  names, page = door.run_page(path, arg, "get_task")
  config = fields.make(Config, page.to_dict(), path.stem)
  drawn = tables.read(config.rows)
  source = hashlib.sha256(path.read_bytes()).hexdigest()
  item, readings = names.get(config.item), names.get("READINGS", {})
  examples = names.get(_OF_PAGE, ())
  if item is None:
    raise ValueError(f"{path} has no function {config.item}: it makes items.")
  return make(path.stem, config, drawn, item, readings, source, examples)


def make(
  name: str,
  config: Config,
  rows: Sequence[Row],
  item: Callable[[Row], Mapping[str, Any]],
  readings: Mapping[str, Reader] | None = None,
  source: str = "",
  examples: Sequence[Row] = (),
) -> Task:
  """Makes items and prompts of rows.

  Args:
    name: of the task.
    config: says where examples are, and how many.
    rows: that the config names.
    item: row -> fields of `Item`.
    readings: name -> what reads an answer out of a text; none: as it is.
    source: digest of the page.
    examples: of the page itself.

  Raises:
    ValueError: a row is not as `item` wants, or there are too few examples.
  """

  def turn(row: Row, i: int, where: str) -> Item:
    try:
      made = Item(**item(row))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as e:
      raise ValueError(
        f"row {i} of {where} is not as configs/tasks/{name}.py wants it: "
        f"{type(e).__name__}: {e}. It has {', '.join(map(str, row))}."
      ) from e
    return _lettered(made) if config.asked == "letters" else made

  asked = [turn(row, i, config.rows) for i, row in enumerate(rows)]
  pool, shots = rows, asked
  if config.shots.n and config.shots.rows:
    is_own = config.shots.rows == _OF_PAGE
    pool = list(examples) if is_own else tables.read(config.shots.rows)
    shots = [turn(row, i, config.shots.rows) for i, row in enumerate(pool)]
  n = config.limit or len(rows)
  draws = _draws(config, list(rows[:n]), list(pool))
  prompts = [
    config.description
    + "".join(shown(shots[j], config) + "\n\n" for j in drawn)
    + one.prompt
    for one, drawn in zip(asked, draws, strict=False)
  ]
  made_of = repr((config, asked[:n], prompts, source)).encode()
  digest = hashlib.sha256(made_of).hexdigest()
  items = tuple(asked[:n])
  return Task(name, config, items, tuple(prompts), dict(readings or {}), digest)


def shown(item: Item, config: Config) -> str:
  """An example: the question with its answer."""
  answer = item.target or item.options[item.right[0]]
  return item.prompt + config.joint + answer


def _lettered(item: Item) -> Item:
  lead = item.prompt if item.lead is None else item.lead
  letters = tuple(LETTERS[: len(item.options)])
  lines = [
    f"{letter}. {option}"
    for letter, option in zip(letters, item.options, strict=True)
  ]
  prompt = "\n".join([lead, *lines, "Answer:"])
  return dataclasses.replace(item, prompt=prompt, options=letters, target="")


def _draws(
  config: Config, rows: Sequence[Row], pool: Sequence[Row]
) -> list[list[int]]:
  """Which examples each row gets; never the row itself, nor an equal one.

  One generator draws for all rows in turn, so that a limit changes none.
  """
  n = config.shots.n
  if not n:
    return [[] for _ in rows]
  rng = random.Random(config.shots.seed)
  # Of the rows themselves one more: the row itself may be among them.
  n_drawn = min(n + (config.shots.spare or not config.shots.rows), len(pool))
  found = []
  for i, row in enumerate(rows):
    others = (j for j, other in enumerate(pool) if other != row)
    if config.shots.draw == "first":
      drawn = list(itertools.islice(others, n))
    else:
      drawn = rng.sample(range(len(pool)), n_drawn)
      drawn = [j for j in drawn if pool[j] != row][:n]
      if len(drawn) < n:
        left = list(others)
        drawn = rng.sample(left, min(n, len(left)))
    if len(drawn) < n:
      raise ValueError(
        f"shots.n={n}, and {config.shots.rows or config.rows} has {len(drawn)} "
        f"rows that are not row {i}: lower it, or name more in shots.rows."
      )
    found.append(drawn)
  return found
