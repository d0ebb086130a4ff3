"""What the README and the pages promise: commands parse, pages build, fit."""

import ast
import importlib
import importlib.util
import json
import math
import pathlib
import re
import shlex

import jax
import pytest
from absl import flags
from jax.sharding import AbstractMesh, AxisType

from configs import door, fields
from models import families, flops
from sharding import mesh, rules

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted(
  path
  for path in (ROOT / "configs").glob("*.py")
  if "def get_config(" in path.read_text()
)
ENTRYPOINTS = sorted(
  path
  for floor in ("data", "train", "convert", "serve", "benchmarks")
  for path in (ROOT / floor).rglob("*.py")
  if "__main__" in path.read_text()
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEXTS = [
  path
  for path in [ROOT / "README.md", *PAGES, *ENTRYPOINTS, *NOTEBOOKS]
  if path.exists()
]
# A run that pages begin from -> the page that makes it.
BASES = {
  "runs/demo": "configs/quickstart.py",
  "runs/smollm2": "configs/smollm2_135m.py",
}
# GiB of one device, as its maker says.
MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "H100": 80, "CPU": 8}


def commands(text: str) -> list[list[str]]:
  """The `python -m ...` and `make ...` lines of a text, as arguments."""
  text = text.replace("\\\n", " ")
  lines = re.findall(r"^[ $!]*((?:python -m|make) [^\n]*)$", text, re.M)
  return [shlex.split(line, comments=True) for line in lines]


def prose(path: pathlib.Path) -> str:
  """The text of a README, the docstring of a module, the cells of a notebook."""
  text = path.read_text()
  if path.suffix == ".ipynb":
    cells = json.loads(text)["cells"]
    code = "\n".join(
      "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
    )
    made = dict(re.findall(r"^([A-Z_]+) = \"?([^\"\n]+)", code, re.M))
    return re.sub(r"\{(\w+)\}", lambda m: made.get(m[1], m[1]), code)
  return ast.get_docstring(ast.parse(text)) if path.suffix == ".py" else text


COMMANDS = [
  pytest.param(command, id=f"{path.stem}-{' '.join(command[:3])}")
  for path in TEXTS
  for command in commands(prose(path))
]


def read_command(command: list[str]) -> door.Config | None:
  """Parses a command as its program would; raises where it would fail.

  Returns:
    The config that the command gives, or None where it takes none.
  """
  if command[0] == "make":
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.M))
    assert set(command[1:]) <= targets, f"make has no {command[1:]}"
    return None
  name, arguments = command[2], command[3:]
  spec = importlib.util.find_spec(name)
  assert spec, f"there is no module {name}"
  source = pathlib.Path(spec.origin).read_text()
  if not re.search(
    r"^SECTIONS\b", source, re.M
  ):  # an instrument: it may need what is not here
    for argument in arguments:
      flag = argument.removeprefix("--").partition("=")[0]
      known = argument in source or f'("{flag}"' in source
      known = known or f"--{flag}=" in source or flag.startswith("runs/")
      assert known, f"{name} takes no {argument}"
    return None
  module = importlib.import_module(name)
  rest, overrides = door.split_overrides(arguments)
  for argument in rest:
    flag = argument.removeprefix("--").partition("=")[0]
    known = flag in flags.FLAGS or flag.removeprefix("no") in flags.FLAGS
    assert argument.startswith("--") and known, f"{name} takes no {argument}"
  given = dict(argument[2:].partition("=")[::2] for argument in rest)
  if "config" not in given or given["config"].startswith("runs/"):
    return None  # or a run will have written it
  page = door.read(ROOT / given["config"])
  if page.get("base", {}).get("path") in BASES:  # as that run will have made it
    made = door.read(ROOT / BASES[page["base"]["path"]])
    page = {**page, "model": {**made["model"], **page["model"]}}
    page["tokenizer"] = made["tokenizer"]
  return door.build(page, module.SECTIONS, overrides)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_docs_parses(command):
  read_command(command)


@pytest.mark.parametrize(
  "line",
  [
    "make tea",
    "python -m train.pretrian --config=configs/quickstart.py",
    "python -m train.pretrain --confg=configs/quickstart.py",
    "python -m train.pretrain --config=configs/quickstrat.py",
    "python -m train.pretrain --config=configs/quickstart.py:stepz=3",
    "python -m train.pretrain --config=configs/quickstart.py --config.optim.r=1",
    "python -m train.pretrain configs/quickstart.py",
    "python -m benchmarks.parity.golden --chek",
  ],
)
def test_a_stale_command_would_be_found(line):
  assert commands(f"    {line}  # as it was\n") == [shlex.split(line)]
  with pytest.raises((AssertionError, ValueError, ModuleNotFoundError)):
    read_command(shlex.split(line))


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def page(request):
  return request.param


def of_page(path: pathlib.Path) -> tuple[str, door.Config]:
  """The docstring of a page, and the config of the command in it."""
  doc = prose(path)
  (config, *_) = filter(None, map(read_command, commands(doc)))
  return doc, config


def test_a_page_says_what_to_expect(page):
  doc, _ = of_page(page)
  own = f"--config=configs/{page.name}"
  assert any(a.startswith(own) for c in commands(doc) for a in c)
  assert "Not run on hardware" in doc or re.search(r"\d+ (minutes|hours)", doc)
  assert re.search(rf"\b\d+ ({'|'.join(MEMORY)})\b", doc), "name the hardware"
  leaves = list(fields.leaves(door.read(page)))
  assert len(leaves) <= 40


def test_a_page_round_trips_through_json(page, tmp_path):
  _, config = of_page(page)
  path = tmp_path / "config.json"
  path.write_text(json.dumps(config.to_dict(), allow_nan=False))
  sections = {
    name: {config.names[name]: type(value)}
    if name in config.names
    else type(value)
    for name, value in config.sections.items()
  }
  assert door.load(path, sections) == config


def test_a_page_fits_its_hardware(page):
  """Shapes divide the mesh; weights, moments and gradients fit the memory."""
  doc, config = of_page(page)
  if "mesh" not in config.sections:  # tables of words, on one device
    assert "2 CPU cores" in doc
    return
  count, device = re.search(rf"\b(\d+) ({'|'.join(MEMORY)})\b", doc).groups()
  n_devices = 1 if device == "CPU" else int(count)
  sizes = mesh.resolve(config.mesh, n_devices)
  layout = rules.make(
    AbstractMesh(
      tuple(sizes.values()),
      tuple(sizes),
      axis_types=(AxisType.Auto,) * len(sizes),
    ),
    config.mesh.rules,
  )
  assert config.batch.size % (layout.n_batch_shards * config.train.n_micro) == 0
  assert config.batch.length <= config.model.max_length
  shapes, axes = families.abstract(config.model), families.axes(config.model)
  held = 0
  # fp32 weights, their gradients, and two moments.
  for kind, copies in (("params", 1), ("grads", 1), ("state", 2)):
    placed = layout.shardings(axes, shapes, kind)
    for leaf, sharding in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True
    ):
      held += 4 * copies * math.prod(sharding.shard_shape(leaf.shape))
  assert held < 0.9 * MEMORY[device] * 2**30, f"{held / 2**30:.1f} GiB"


# Published sizes, in millions of parameters.
@pytest.mark.parametrize(
  "family, preset, millions",
  [
    ("gpt", "gpt2_124m", 124.44),
    ("gpt", "gpt2_1558m", 1557.61),
    ("t5", "t5_small", 60.51),
    ("t5", "t5_11b", 11307.32),
    ("t5", "t5_v1_1_base", 247.58),
    ("t5", "t5_v1_1_xxl", 11135.33),
    ("bart", "bart_base", 139.42),
    ("bart", "bart_large", 406.29),
    ("llama", "smollm2_135m", 134.52),
    ("llama", "llama2_7b", 6738.42),
    ("llama", "llama2_70b", 68976.65),
    ("llama", "llama3_8b", 8030.26),
    ("llama", "llama3_70b", 70553.71),
    ("llama", "llama3_2_1b", 1235.81),
    ("llama", "mistral_7b", 7241.73),
    ("llama", "qwen2_500m", 494.03),
    ("llama", "qwen2_7b", 7615.62),
    ("llama", "qwen3_600m", 596.05),
    ("llama", "qwen3_8b", 8190.74),
  ],
)
def test_a_preset_has_the_published_size(family, preset, millions):
  config = fields.presets(families.FAMILIES[family])[preset]
  assert flops.n_params(config) / 1e6 == pytest.approx(millions, abs=0.01)
