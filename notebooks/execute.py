"""Executes the notebooks from top to bottom, as `make notebooks` does.

    python -m notebooks.execute
    python -m notebooks.execute --notebooks=quickstart --set=STEPS=20

Each is written to --executed with all that it showed, its pictures beside it. A
command that fails in a cell fails the notebook, and the exit code is 1. --set
changes a value of the cell that is tagged `parameters`, in those that have it.
"""

import ast
import base64
import copy
import difflib
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import nbclient
import nbformat
from absl import app, flags

FOLDER = pathlib.Path(__file__).resolve().parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.ipynb")))

_ONLY = flags.DEFINE_list(
  "notebooks", [], f"of {', '.join(NAMES)}; all if empty"
)
_SET = flags.DEFINE_multi_string("set", [], "NAME=VALUE; may be repeated")
_OUT = flags.DEFINE_string("executed", "runs/notebooks", "folder to write to")


def read(name: str) -> nbformat.NotebookNode:
  """A notebook by its name.

  Raises:
    ValueError: there is none; tells the nearest.
  """
  if name not in NAMES:
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
    raise ValueError(f"there is no notebook {name}; the nearest is {near}.")
  return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def parameters(notebook: nbformat.NotebookNode) -> dict[str, Any]:
  """What the cell that is tagged `parameters` sets."""
  tree = ast.parse(_cell(notebook).source)
  return {
    node.targets[0].id: ast.literal_eval(node.value)
    for node in tree.body
    if isinstance(node, ast.Assign)
  }


def with_parameters(
  notebook: nbformat.NotebookNode, values: Mapping[str, Any]
) -> nbformat.NotebookNode:
  """A copy whose cell of parameters sets other values in the end.

  Raises:
    ValueError: it has no such parameter, or one of another type.
  """
  known = parameters(notebook)
  for name, value in values.items():
    if name not in known:
      raise ValueError(f"{name} is no parameter, but {', '.join(known)} are.")
    if type(value) is not type(known[name]):
      raise ValueError(f"{name}={value!r}: give a value like {known[name]!r}.")
  changed = copy.deepcopy(notebook)
  lines = [f"{name} = {value!r}" for name, value in values.items()]
  cell = _cell(changed)
  cell.source = "\n".join([cell.source, *lines])
  return changed


def _cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
  (cell,) = (
    cell
    for cell in notebook.cells
    if "parameters" in cell.metadata.get("tags", ())
  )
  return cell


def execute(
  notebook: nbformat.NotebookNode, folder: pathlib.Path
) -> nbformat.NotebookNode:
  """Fills in the outputs, in place, as far as it comes.

  Args:
    notebook: to be run.
    folder: that it runs in: the root of the repository.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell failed; holds its output.
  """
  own = pathlib.Path(sys.executable).parent  # so that `python` is this one
  client = nbclient.NotebookClient(
    notebook,
    timeout=None,
    kernel_name="python3",
    extra_arguments=["--InteractiveShell.system_raise_on_error=True"],
    resources={"metadata": {"path": str(folder)}},
    on_cell_start=lambda cell, cell_index: _say(cell),
  )
  client.execute(env={**os.environ, "PATH": f"{own}:{os.environ['PATH']}"})
  return notebook


def _say(cell: nbformat.NotebookNode) -> None:
  if cell.cell_type == "code":
    print(f"  {time.strftime('%X')} {cell.source.splitlines()[0]}", flush=True)


def text(notebook: nbformat.NotebookNode) -> str:
  """All that its cells printed."""
  return "".join(
    output.text
    for cell in notebook.cells
    for output in cell.get("outputs", ())
    if output.output_type == "stream"
  )


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
  """PNG files, in their order."""
  return [
    base64.b64decode(output.data["image/png"])
    for cell in notebook.cells
    for output in cell.get("outputs", ())
    if "image/png" in output.get("data", ())
  ]


def write(
  notebook: nbformat.NotebookNode, out: pathlib.Path, name: str
) -> None:
  """Writes OUT/NAME.ipynb, and OUT/NAME_1.png and on."""
  out.mkdir(parents=True, exist_ok=True)
  nbformat.write(notebook, out / f"{name}.ipynb")
  for number, picture in enumerate(pictures(notebook), 1):
    (out / f"{name}_{number}.png").write_bytes(picture)


def main(argv: list[str]) -> int:
  """One after the other; 1 where one failed."""
  if len(argv) > 1:
    raise app.UsageError(f"{argv[1]} is no flag; give --only={argv[1]}.")
  try:
    chosen = _chosen(dict(one.partition("=")[::2] for one in _SET.value))
  except ValueError as error:
    print(f"error: {error}")
    return 2
  out, code = pathlib.Path(_OUT.value), 0
  for name, notebook in chosen.items():
    print(name, flush=True)
    started = time.monotonic()
    try:
      execute(notebook, FOLDER.parent)
    except nbclient.exceptions.CellExecutionError as error:
      print(error)
      code = 1
    write(notebook, out, name)
    print(f"  {time.monotonic() - started:,.0f} s: {out / name}.ipynb")
  return code


def _chosen(given: dict[str, str]) -> dict[str, nbformat.NotebookNode]:
  notebooks = {name: read(name) for name in _ONLY.value or NAMES}
  for name, notebook in notebooks.items():
    known = parameters(notebook)
    values = {
      key: value if isinstance(known[key], str) else ast.literal_eval(value)
      for key, value in given.items()
      if key in known
    }
    notebooks[name] = with_parameters(notebook, values)
  if unknown := set(given).difference(*map(parameters, notebooks.values())):
    raise ValueError(f"--set={unknown.pop()}: no notebook has this parameter.")
  return notebooks


if __name__ == "__main__":
  app.run(main)
