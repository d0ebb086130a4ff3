"""Notebooks as they are kept; test_execute.py runs them."""

import ast
import builtins
import importlib
import importlib.util
import pathlib
import re

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request) -> pathlib.Path:
  return request.param


@pytest.fixture
def notebook(path) -> nbformat.NotebookNode:
  return nbformat.read(path, as_version=4)


def code(notebook) -> list[nbformat.NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def joined(cell) -> str:
  """Its source, each command on a line."""
  return cell.source.replace("\\\n", " ")


def python(cell) -> ast.Module:
  """A cell without its commands and magics."""
  bare = re.sub(r"^(\s*)[!%].*$", r"\1pass", joined(cell), flags=re.M)
  return ast.parse(bare)


def test_four_are_here():
  assert {path.stem for path in PATHS} == {
    "finetune_lora", "plan_a_pod", "quickstart", "scaling_laws",
  }  # fmt: skip


def test_a_notebook_is_written_in_one_way_and_without_outputs(path, notebook):
  nbformat.validate(notebook)
  assert path.read_text() == nbformat.writes(notebook) + "\n"
  assert set(notebook.metadata) == {"kernelspec", "language_info"}
  for cell in code(notebook):
    assert cell.execution_count is None and cell.outputs == []
  # Names, where editors put random ones, which would differ at every save.
  assert all(re.fullmatch(r"[a-z][a-z-]+", c.id) for c in notebook.cells)


def test_a_notebook_has_no_logic_of_its_own(notebook):
  for cell in code(notebook):
    assert len(cell.source.splitlines()) <= 12, cell.id
    for node in ast.walk(python(cell)):
      assert not isinstance(
        node,
        ast.FunctionDef | ast.Lambda | ast.ClassDef | ast.For | ast.While
        | ast.Try | ast.With,
      ), f"{cell.id}: {ast.unparse(node)}"  # fmt: skip


def test_what_is_imported_is_there(notebook):
  for cell in code(notebook):
    for node in ast.walk(python(cell)):
      for alias in getattr(node, "names", ()):
        if isinstance(node, ast.Import):
          assert importlib.util.find_spec(alias.name), alias.name
        elif (
          node.module.partition(".")[0] != "IPython"
        ):  # not of the fast tests
          module = importlib.import_module(node.module)
          if not hasattr(module, alias.name):
            importlib.import_module(f"{node.module}.{alias.name}")


def test_every_name_is_bound_before_it_is_used(notebook):
  """Of Python and of commands: {NAME} is a value that a cell above made."""
  bound = {*vars(builtins)}
  for cell in code(notebook):
    tree = python(cell)
    nodes = [*ast.walk(tree)]
    bound |= {
      (alias.asname or alias.name).partition(".")[0]
      for node in nodes
      for alias in getattr(node, "names", ())
    }
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
    used = {n.id for n in names if isinstance(n.ctx, ast.Load)}
    commands = "\n".join(re.findall(r"^\s*[!%].*$", joined(cell), re.M))
    used |= set(re.findall(r"\{(\w+)\}", commands))
    assert used <= bound, f"{cell.id}: {used - bound}"


def test_files_that_are_linked_exist(path, notebook):
  for cell in notebook.cells:
    if cell.cell_type == "markdown":
      for target in re.findall(r"\]\(([^)]+)\)", cell.source):
        if not target.startswith("https://"):
          assert (path.parent / target).exists(), target


def test_all_name_one_repository_and_install_in_one_way():
  """One line of sed, which the README tells, gives all of them another."""
  owners, cells = set(), set()
  for path in PATHS:
    notebook = nbformat.read(path, as_version=4)
    badge, install = notebook.cells[0].source, code(notebook)[0].source
    link = f"/blob/main/notebooks/{path.name})"
    (owner,) = re.findall(
      rf"github/([\w-]+)/throughline{re.escape(link)}", badge
    )
    owners |= {owner, *re.findall(r"github.com/([\w-]+)/", install)}
    cells.add(install.replace("},plan]", "}]"))
  assert len(owners) == 1 and len(cells) == 1
  assert f"s/{owners.pop()}/NAME/" in (ROOT / "README.md").read_text()
