"""The laws of the house, read off the source; each is shown to bite.

A law maps the files of a tree to complaints. It must have none on this tree,
and at least one on a small tree that breaks it.
"""

import ast
import dataclasses
import importlib.util
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Floor -> the floors that it may import; ones that nobody lists are the top.
FLOORS = {
  "configs": set(),
  "sharding": set(),
  "models": {"sharding", "configs"},
  "data": {"sharding", "configs"},
  "train": {"models", "data", "sharding", "configs"},
  "convert": {"models", "data", "sharding", "configs"},
  "serve": {"train", "convert", "models", "data", "sharding", "configs"},
}
TOP = ("research", "benchmarks", "tests", "notebooks")
GROUND = {"absl", "etils", "ml_collections"}  # beside the standard library
SHARDING = {"jax", "jaxtyping", "numpy"}
# Optional packages: imported in the one function that needs them.
OPTIONAL = {
  "bitsandbytes", "fastapi", "gguf", "lm_eval", "mlflow", "onnx",
  "onnxruntime", "optuna", "peft", "ray", "rouge_score", "sacrebleu", "sklearn", "torch",
  "transformers", "uvicorn", "wandb",
}  # fmt: skip
LONG_FUNCTIONS = {  # "path:name" -> why it may have 200 lines
  "train/core/loop.py:run": "the loop reads from top to bottom",
}
SKIPPED = {"__pycache__", "build", "runs", "dist"}


@dataclasses.dataclass(frozen=True)
class File:
  path: str
  text: str

  @property
  def tree(self) -> ast.Module:
    return ast.parse(self.text)

  @property
  def floor(self) -> str:
    return self.path.split("/")[0]

  @property
  def module(self) -> str:
    dotted = self.path.removesuffix(".py").replace("/", ".")
    return dotted.removesuffix(".__init__")


Files = list[File]
Law = Callable[[Files], Iterator[str]]


def read_tree() -> Files:
  suffixes = {".py", ".sh", ".md", ".toml", ".txt", ".ipynb", ".yml", ".json"}
  named = {"Makefile", "run", ".gitignore"}
  found = []
  for path in sorted(ROOT.rglob("*")):
    parts = path.relative_to(ROOT).parts
    hidden = any(p.startswith(".") and p not in (".ci",) for p in parts[:-1])
    if hidden or SKIPPED & set(parts) or parts[0].endswith(".egg-info"):
      continue
    if path.suffix in suffixes or path.name in named and path.is_file():
      found.append(File("/".join(parts), path.read_text()))
  return found


def code(files: Files) -> Files:
  return [file for file in files if file.path.endswith(".py")]


def product(files: Files) -> Files:
  return [file for file in code(files) if file.floor in FLOORS]


def is_page(file: File) -> bool:
  return file.floor == "configs" and "def get_config(" in file.text


def imports(file: File, root: ast.AST | None = None) -> Iterator[str]:
  """Dotted names that a file imports; `from a import b` gives a.b."""
  for node in ast.walk(root or file.tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{file.path}: relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(file: File) -> Iterator[ast.FunctionDef]:
  for node in ast.walk(file.tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      yield node


def configs(file: File) -> Iterator[tuple[ast.ClassDef, list[str]]]:
  """The frozen, keyword-only dataclasses and their fields."""
  for node in ast.walk(file.tree):
    if not isinstance(node, ast.ClassDef):
      continue
    marks = " ".join(map(ast.unparse, node.decorator_list))
    if "frozen=True" in marks and "kw_only=True" in marks:
      fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
      yield node, [field.target.id for field in fields]


# The laws --------------------------------------------------------------------


def files_are_short(files: Files) -> Iterator[str]:
  for file in code(files):
    n_lines = len(file.text.splitlines())
    if n_lines > 600:
      yield f"{file.path} has {n_lines} lines; 600 are allowed"


def entrypoints_are_pages(files: Files) -> Iterator[str]:
  for file in code(files):
    n_lines = len(file.text.splitlines())
    is_entry = file.floor == "train" and file.path.count("/") == 1
    if is_entry and n_lines > 120:
      yield f"{file.path} has {n_lines} lines; an entrypoint has 120"


def functions_are_short(files: Files) -> Iterator[str]:
  used = set()
  for file in code(files):
    for node in functions(file):
      name = f"{file.path}:{node.name}"
      n_lines = node.end_lineno - node.lineno + 1
      used |= {name} if n_lines > 80 else set()
      limit = 200 if name in LONG_FUNCTIONS else 80
      if n_lines > limit:
        yield f"{name} has {n_lines} lines; {limit} are allowed"
  for name in set(LONG_FUNCTIONS) - used:
    if name.split(":")[0] in {file.path for file in files}:
      yield f"{name} needs no exception any more"


def configs_are_small(files: Files) -> Iterator[str]:
  for file in product(files):
    limit = 20 if file.floor == "models" else 15
    for node, fields in configs(file):
      if len(fields) > limit:
        yield f"{file.path}:{node.name} has {len(fields)} fields, not {limit}"


def settings_are_read(files: Files) -> Iterator[str]:
  """A field is read as an attribute or named in a string; checks count not."""
  uses: dict[str, set[tuple[str, int]]] = {}
  for file in product(files):
    for node in ast.walk(file.tree):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        uses.setdefault(node.attr, set()).add((file.path, node.lineno))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        uses.setdefault(node.value, set()).add((file.path, node.lineno))
  for file in product(files):
    for node, fields in configs(file):
      checks = [
        (file.path, i)
        for check in node.body
        if getattr(check, "name", "") == "__post_init__"
        for i in range(check.lineno, check.end_lineno + 1)
      ]
      for field in fields:
        if not uses.get(field, set()).difference(checks):
          yield f"{file.path}:{node.name}.{field} is never read"


def modules_have_telling_names(files: Files) -> Iterator[str]:
  for file in code(files):
    words = {"utils", "util", "helpers", "helper", "misc", "common"}
    found = words & set(file.module.split("."))
    if found and file.path != "configs/common.py":
      yield f"{file.path} is called {found.pop()}: name what it holds"


def floors_are_kept(files: Files) -> Iterator[str]:
  for file in product(files):
    allowed = FLOORS[file.floor] | {file.floor}
    for name in imports(file):
      floor = name.split(".")[0]
      if floor in (*FLOORS, *TOP) and floor not in allowed:
        yield f"{file.path} imports {name}: {file.floor} may not see {floor}"


def ground_floors_are_light(files: Files) -> Iterator[str]:
  for file in product(files):
    if file.floor not in ("configs", "sharding"):
      continue
    light = GROUND if file.floor == "configs" else SHARDING
    for name in imports(file):
      top = name.split(".")[0]
      own = top == file.floor
      if is_page(file) and name != "configs.common":
        yield f"{file.path} imports {name}: a page imports configs.common"
      if not own and top not in light and top not in sys.stdlib_module_names:
        yield f"{file.path} imports {name}: this floor stands on {light}"


def imports_have_no_cycles(files: Files) -> Iterator[str]:
  modules = {file.module: file for file in product(files)}
  graph = {}
  for name, file in modules.items():
    found = set()
    for target in imports(file):
      parent = target.rpartition(".")[0]
      found |= {m for m in (target, parent) if m in modules and m != name}
    graph[name] = found
  done: set[str] = set()

  def visit(name: str, above: tuple[str, ...]) -> Iterator[str]:
    if name in above:
      yield " -> ".join((*above[above.index(name) :], name)) + " is a cycle"
    elif name not in done:
      for below in sorted(graph[name]):
        yield from visit(below, (*above, name))
      done.add(name)

  for name in sorted(graph):
    yield from visit(name, ())


def imports_are_at_the_top(files: Files) -> Iterator[str]:
  for file in code(files):
    for function in functions(file):
      for name in imports(file, function):
        if name.split(".")[0] not in OPTIONAL:
          yield f"{file.path}:{function.name} hides the import of {name}"
    if file.floor in FLOORS and "import_module" in file.text:
      yield f"{file.path} hides an import behind importlib"


def modules_say_what_they_are(files: Files) -> Iterator[str]:
  for file in code(files):
    if file.text.strip() and not ast.get_docstring(file.tree):
      yield f"{file.path} has no docstring"


def rooms_are_furnished(files: Files) -> Iterator[str]:
  full = {
    parent.as_posix()
    for file in code(files)
    if not file.path.endswith("__init__.py")
    for parent in pathlib.PurePosixPath(file.path).parents
  }
  for file in code(files):
    folder = file.path.rpartition("/")[0]
    if file.floor == "tests" and file.path.endswith("__init__.py"):
      yield f"{file.path}: tests are no packages"
    elif folder not in full and folder:
      yield f"{folder} is an empty room"
    elif folder and file.floor in FLOORS:
      if File(f"{folder}/__init__.py", "").path not in {f.path for f in files}:
        yield f"{folder} has no __init__.py"


def readme_shows_the_house(files: Files) -> Iterator[str]:
  """A fenced block of lines `path  what it is` names every module once.

  A line for a folder, `models/layers/`, stands for the files right in it.
  """
  readme = next((f.text for f in files if f.path == "README.md"), "")
  blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.M | re.S)
  shown = [
    line.split()[0]
    for block in blocks
    if re.search(r"^models/", block, re.M)
    for line in block.splitlines()
    if re.match(r"[\w.]+/\S*", line)
  ]
  if not shown:
    yield "README.md shows no tree: a fenced block of `path  what it is`"
    return
  paths = {file.path for file in files}
  folders = {f"{p.rpartition('/')[0]}/" for p in paths}
  folders |= {f"{f.split('/')[0]}/" for f in folders}
  for path in shown:
    if path not in paths | folders:
      yield f"README.md shows {path}, which does not exist"
    if shown.count(path) > 1:
      yield f"README.md shows {path} twice"
  for file in [*product(files), *(f for f in code(files) if f.floor in TOP)]:
    folder = f"{file.path.rpartition('/')[0]}/"
    is_init = file.path.endswith("__init__.py")
    if file.floor != "tests" and not is_init:
      if not {file.path, folder} & set(shown):
        yield f"README.md does not show {file.path}"


def nothing_runs_what_it_reads(files: Files) -> Iterator[str]:
  banned_calls = {
    "eval", "exec", "__import__", "torch.load", "yaml.load", "os.system",
    "os.popen",
  }  # fmt: skip
  banned_modules = {"pickle", "cPickle", "dill", "cloudpickle", "marshal"}
  banned_words = {"shell": True, "allow_pickle": True, "weights_only": False}
  for file in code(files):
    for name in imports(file):
      if name.split(".")[0] in banned_modules:
        yield f"{file.path} imports {name}"
    for node in ast.walk(file.tree):
      if not isinstance(node, ast.Call):
        continue
      called = ast.unparse(node.func)
      if called in banned_calls or called.endswith(".extractall"):
        yield f"{file.path}:{node.lineno} calls {called}"
      for word in node.keywords:
        value = getattr(word.value, "value", None)
        if word.arg in banned_words and value is banned_words[word.arg]:
          yield f"{file.path}:{node.lineno} passes {word.arg}={value}"


def no_machine_is_named(files: Files) -> Iterator[str]:
  places = "|".join(["home", "root", "Users", "work", "mnt", "opt"])
  for file in files:
    for i, line in enumerate(file.text.splitlines(), 1):
      found = re.search(rf"(?<![\w.}})/]){'/'}({places})/\w+", line)
      if found:
        yield f"{file.path}:{i} names a place on a machine: {found[0]}"


def comments(file: File) -> Iterator[tuple[int, str]]:
  for token in tokenize.generate_tokens(io.StringIO(file.text).readline):
    if token.type == tokenize.COMMENT:
      yield token.start[0], token.string


def comments_are_ascii(files: Files) -> Iterator[str]:
  for file in code(files):
    for line, comment in comments(file):
      if not comment.isascii():
        yield f"{file.path}:{line} {comment}"


def shapes_are_typed(files: Files) -> Iterator[str]:
  shape = re.compile(r"#\s*[\[(][A-Z](,\s*[A-Z])+,?[\])]\s*$")
  for file in code(files):
    for line, comment in comments(file):
      if shape.match(comment):
        yield f"{file.path}:{line} {comment}: say it in the type or the name"


def packages_lie_here(files: Files) -> Iterator[str]:
  for package in {f.floor for f in code(files) if "/" in f.path} - {"tests"}:
    spec = importlib.util.find_spec(package)
    origin = spec and (
      spec.origin or next(iter(spec.submodule_search_locations))
    )
    if not origin or not pathlib.Path(origin).is_relative_to(ROOT):
      yield f"{package} resolves to {origin}, outside of this repository"


def code_of(path: str, *lines: str) -> Files:
  return [File(path, "\n".join(('"""What."""', *lines, "")))]


_CONFIG = ("@dataclass(frozen=True, kw_only=True)", "class Config:")
_IMPORT_UP = code_of("models/x.py", "from train.core import loop")
_CLASH = code_of("json/x.py")  # the standard library has this name
# Law -> a tree that breaks it, and a word of the complaint.
BITES: dict[Law, list[tuple[Files, str]]] = {
  files_are_short: [(code_of("a/b.py", *["x = 1"] * 600), "601 lines")],
  entrypoints_are_pages: [(code_of("train/x.py", *["x = 1"] * 120), "has 121")],
  functions_are_short: [
    (code_of("a/b.py", "def f():", *["  x = 1"] * 80), "b.py:f has 81 lines"),
    (
      code_of("train/core/loop.py", "def run():", *["  x = 1"] * 200),
      "loop.py:run has 201 lines",
    ),
    (code_of("train/core/loop.py", "def run():", "  x = 1"), "needs no excep"),
  ],
  configs_are_small: [
    (
      code_of("models/x.py", *_CONFIG, *[f"  a{i}: int" for i in range(21)]),
      "21 fields",
    ),
    (
      code_of("train/x.py", *_CONFIG, *[f"  a{i}: int" for i in range(16)]),
      "16 fields",
    ),
  ],
  settings_are_read: [
    (
      code_of(
        "train/x.py",
        *_CONFIG,
        "  used: int",
        "  smoothing: float = 0.0",
        "  def __post_init__(self):",
        "    assert self.smoothing >= 0",
        "def loss(config):",
        "  config.smoothing = 1",
        "  return f(config.used, smoothing=0.0)",
      ),
      "Config.smoothing is never read",
    )
  ],
  modules_have_telling_names: [
    (code_of("models/utils.py"), "is called utils"),
    (code_of("train/common/x.py"), "is called common"),
  ],
  floors_are_kept: [
    (_IMPORT_UP, "models may not see train"),
    (code_of("models/x.py", "import data.batch"), "models may not see data"),
    (code_of("data/x.py", "from models import gpt"), "data may not see models"),
    (code_of("train/x.py", "import serve"), "train may not see serve"),
    (code_of("train/x.py", "import convert"), "train may not see convert"),
    (code_of("serve/x.py", "import benchmarks.speed"), "may not see benchm"),
    (
      code_of("models/x.py", "def f():", "  from train import core"),
      "models may not see train",
    ),
  ],
  ground_floors_are_light: [
    (code_of("sharding/x.py", "import flax"), "imports flax"),
    (code_of("configs/door.py", "import jax"), "imports jax"),
    (
      code_of("configs/x.py", "import math", "def get_config(arg):", "  pass"),
      "a page imports configs.common",
    ),
  ],
  imports_have_no_cycles: [
    (
      code_of("models/a.py", "from models import b")
      + code_of("models/b.py", "from models.c import f")
      + code_of("models/c.py", "import models.a"),
      "models.a -> models.b -> models.c -> models.a is a cycle",
    )
  ],
  imports_are_at_the_top: [
    (code_of("a/b.py", "def f():", "  import jax"), "hides the import of jax"),
    (
      code_of("a/b.py", "class A:", "  def f(self):", "    from x import y"),
      "b.py:f hides the import of x.y",
    ),
    (code_of("data/b.py", "importlib.import_module('x')"), "behind importlib"),
  ],
  modules_say_what_they_are: [([File("a/b.py", "x = 1")], "no docstring")],
  rooms_are_furnished: [
    ([File("serve/__init__.py", "")], "serve is an empty room"),
    ([File("tests/data/__init__.py", "")], "tests are no packages"),
    (code_of("train/x.py"), "train has no __init__.py"),
  ],
  readme_shows_the_house: [
    (code_of("models/a.py"), "shows no tree"),
    (
      [
        File("README.md", "```\nmodels/a.py  one\nmodels/c.py  gone\n```\n"),
        *code_of("models/a.py"),
        *code_of("models/b.py"),
      ],
      "shows models/c.py, which does not exist",
    ),
    (
      [
        File("README.md", "```\nmodels/a.py  one\n```\n"),
        *code_of("models/a.py"),
        *code_of("models/layers/b.py"),
      ],
      "does not show models/layers/b.py",
    ),
  ],
  nothing_runs_what_it_reads: [
    (code_of("a/b.py", line), word)
    for line, word in [
      ("import pickle", "imports pickle"),
      ("from dill import loads", "imports dill.loads"),
      ("x = eval(y)", "calls eval"),
      ("exec(y)", "calls exec"),
      ("torch.load(p)", "calls torch.load"),
      ("f.load(p, weights_only=False)", "passes weights_only=False"),
      ("subprocess.run(c, shell=True)", "passes shell=True"),
      ("np.load(p, allow_pickle=True)", "passes allow_pickle=True"),
      ("archive.extractall(p)", "calls archive.extractall"),
    ]
  ],
  no_machine_is_named: [
    ([File("README.md", f"cd {'/'}home/ann/x")], "README.md:1 names a place"),
    ([File("Makefile", f"\nx: {'/'}root/y")], "Makefile:2"),
  ],
  comments_are_ascii: [(code_of("a/b.py", "x = 1  # \u2248 2"), "b.py:2")],
  shapes_are_typed: [
    (code_of("a/b.py", "x = f(y)  # [B, T, D]"), "b.py:2"),
    (code_of("a/b.py", "x = f(y)  # (B, T)"), "b.py:2"),
  ],
  packages_lie_here: [(_CLASH, "outside of this repository")],
}


@pytest.fixture(scope="module")
def house() -> Files:
  return read_tree()


@pytest.mark.parametrize("law", BITES, ids=lambda law: law.__name__)
def test_the_house_keeps(law, house):
  assert list(law(house)) == []


@pytest.mark.parametrize(
  "law, files, words",
  [(law, *bite) for law, bites in BITES.items() for bite in bites],
  ids=lambda value: getattr(value, "__name__", None),
)
def test_the_law_bites(law, files, words):
  assert any(words in complaint for complaint in law(files)), list(law(files))


def test_the_whole_house_is_read(house):
  paths = {file.path for file in house}
  assert {"configs/door.py", "tests/test_house.py", "Makefile"} <= paths
  assert not any("site-packages" in path for path in paths)
