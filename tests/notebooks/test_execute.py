"""Notebooks as they run, cut short (slow): a kernel each, as `make notebooks`."""

import json
import pathlib
import re

import nbformat
import numpy as np
import pytest
from etils import epath

from configs import door
from research.scaling import law
from train import sweep
from train.core import sweeps

nbclient = pytest.importorskip(
  "nbclient", reason="pip install -e '.[notebooks]'"
)
execute = pytest.importorskip("notebooks.execute")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLANTED = law.Law(1.5, 30.0, 60.0, 0.30, 0.28)


def run(name: str, **values) -> tuple[str, list[bytes]]:
  """What a notebook prints and draws."""
  found = execute.with_parameters(execute.read(name), values)
  execute.execute(found, ROOT)
  return execute.text(found), execute.pictures(found)


def test_a_model_is_trained_adapted_and_merged(tmp_path):
  """Merged, it measures as the adapter did, whose weights are bfloat16's."""
  base, own = str(tmp_path / "base"), str(tmp_path / "lora")
  text, pictures = run("quickstart", STEPS=4, WORKDIR=base)
  assert "bits_per_byte" in text and "def main(" in text
  assert len(pictures) == 1
  text, pictures = run(
    "finetune_lora", BASE=base, BASE_STEPS=4, STEPS=4, WORKDIR=own
  )
  losses = re.findall(r"heldout_loss +([\d.]+)", text)
  before, after, merged = map(float, losses[-3:])
  assert after < before
  assert merged == pytest.approx(after, abs=2e-3)
  assert len(pictures) == 1


def test_scaling_laws_reads_a_finished_sweep(tmp_path):
  """The planted numbers lie in the intervals that the notebook tells."""
  workdir = epath.Path(tmp_path) / "sweep"
  finish(workdir)
  text, pictures = run("scaling_laws", WORKDIR=str(workdir), DRAWS=40)
  assert "12 of 12 runs are done already" in text
  (line,) = re.findall(r"^{\"runs\".*}$", text.replace("\r", ""), re.M)
  told = json.loads(line)
  low, high = told["exponent_interval"]
  assert low < PLANTED.exponent < high
  assert len(pictures) == 1


def test_plan_a_pod():
  text, pictures = run(
    "plan_a_pod",
    PAGE="configs/quickstart.py",
    TOPOLOGY="v5e:2x2",
    OTHERS=["v5e:2x2", "v5e:2x4"],
  )
  assert "estimated" in text and "compiled in" in text
  assert '"found": [{' in text
  assert len(pictures) == 1


def test_a_command_that_fails_fails_its_notebook():
  cell = nbformat.v4.new_code_cell("!python -m train.report --workdir=none")
  broken = nbformat.v4.new_notebook(cells=[cell])
  with pytest.raises(nbclient.exceptions.CellExecutionError):
    execute.execute(broken, ROOT)


def test_parameters_are_known_and_of_one_kind():
  quickstart = execute.read("quickstart")
  with pytest.raises(ValueError, match="STEP is no parameter"):
    execute.with_parameters(quickstart, {"STEP": 4})
  with pytest.raises(ValueError, match="give a value like 600"):
    execute.with_parameters(quickstart, {"STEPS": "4"})
  with pytest.raises(ValueError, match="nearest is quickstart"):
    execute.read("quickstar")


def finish(workdir: epath.Path) -> None:
  """A sweep that has run, of losses that follow a planted law."""
  page = "configs/sweeps/micro.py"
  config = door.build(door.read(page), sweep.SECTIONS)
  overrides = door.ask_page(page, "get_sweep")
  rng = np.random.default_rng(0)
  for run in sweeps.plan(config.to_dict(), overrides, sweep.SECTIONS, workdir):
    run.folder.mkdir(parents=True)
    n, d = sweeps.n_params(run), sweeps.n_tokens(run)
    loss = float(PLANTED.loss(n, d)) * np.exp(0.003 * rng.normal())
    row = {"step": run.config.train.steps, "kind": "eval", "heldout_loss": loss}
    (run.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    outcome = {"code": 0, "seconds": 1.0}
    (run.folder / "outcome.json").write_text(json.dumps(outcome))
