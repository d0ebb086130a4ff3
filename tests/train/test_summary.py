"""report.md: what a run leaves for whoever finds its folder."""

import json
import re

import jax
import pytest
from etils import epath

from data import store
from models import checkpoint, manifest
from train import pretrain
from train.core import lineage, sinks, summary


@pytest.fixture(scope="module")
def ended(page, tmp_path_factory):
  """Two lives, the second with another learning rate."""
  workdir = epath.Path(tmp_path_factory.mktemp("runs")) / "tiny"
  how = dict(
    log={"report": True},
    eval={"during": ("perplexity", "samples")},
    schedule={"warmup_steps": 0},
  )
  pretrain.main(page(train={"steps": 2}, **how), workdir)
  config = page(train={"steps": 4}, optim={"lr": 0.5}, **how)
  pretrain.main(config, workdir)
  return config, workdir


def _section(workdir, name: str) -> str:
  text = (workdir / "report.md").read_text()
  return re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]


def _cells(text: str) -> dict[str, list[str]]:
  rows = re.findall(r"^\| (.*) \|$", text, re.M)
  return {row.split(" | ")[0]: row.split(" | ")[1:] for row in rows}


def test_figures_are_the_last_ones(ended):
  _, workdir = ended
  *_, held = [r for r in sinks.rows(workdir) if r["kind"] == "eval"]
  cells = _cells(_section(workdir, "Figures"))
  assert cells["held-out loss"] == [f"{held['heldout_loss']:.4f}", "4"]
  assert cells["the same at the start"][1] == "1"
  assert (workdir / "curves.png").stat().length > 10_000


def test_settings_are_those_that_were_chosen(ended):
  config, workdir = ended
  text = _section(workdir, "Settings")
  cells = _cells(text)
  assert cells["`optim.lr`"][0] == "`0.5`"
  assert cells["`optim.name`"][0] == "`adamw`"
  assert "`optim.b1`" not in cells and "`train.seed`" not in cells
  whole = json.loads(re.search(r"```json\n(.*?)\n```", text, re.S)[1])
  assert whole == json.loads(json.dumps(config.to_dict()))


def test_lineage_tells_lives_data_and_digests(ended):
  _, workdir = ended
  first, last = lineage.read(workdir)
  assert (first["from_step"], last["from_step"]) == (0, 2)
  assert first["settings"]["optim.lr"] == 0.01
  assert first["data_sha256"] == last["data_sha256"]
  text = _section(workdir, "Lineage")
  assert last["data_sha256"] in text and last["tokenizer_sha256"] in text
  assert manifest.digest(checkpoint.find(workdir)) in text
  assert "began from random numbers" in text
  card = json.loads((checkpoint.find(workdir) / "card.json").read_text())
  assert card["git"] == last["git"] and card["git"].rstrip("+") in text
  assert "those before" in text


def test_other_hosts_leave_the_lineage_to_the_first(ended, monkeypatch):
  """Two that put the same file in its place can fail at it."""
  config, workdir = ended
  before = (workdir / lineage.FILE).read_text()
  opened = store.Store(workdir / "store")
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  lineage.record(workdir, config, opened, None, 4)
  assert (workdir / lineage.FILE).read_text() == before
  monkeypatch.undo()
  lineage.record(workdir, config, opened, None, 4)
  assert len(lineage.read(workdir)) == 3
  (workdir / lineage.FILE).write_text(before)


def test_samples_cannot_break_out_of_their_fence(tmp_path, ended):
  _, workdir = ended
  assert "At step 4;" in _section(workdir, "Samples")
  lines = summary._samples([sinks.Text(3, "sample", "a\n````\n# no head")])
  fences = [line for line in lines if line.startswith("`")]
  assert fences == ["`````text", "`````"]


def test_a_run_that_begins_anew_forgets_its_former_lives(ended, page):
  """Nothing was saved of them that this one goes on from."""
  config, workdir = ended
  before = lineage.read(workdir)
  other = workdir.parent / "anew"
  other.mkdir()
  (other / lineage.FILE).write_text(json.dumps(before[0]) + "\n")
  pretrain.main(page(train={"steps": 1}, schedule={"warmup_steps": 0}), other)
  (life,) = lineage.read(other)
  assert life["from_step"] == 0 and life["time"] != before[0]["time"]
  assert not (other / "report.md").exists()  # log.report=False


def test_a_folder_without_steps_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no metrics.jsonl with steps"):
    summary.write(epath.Path(tmp_path))
