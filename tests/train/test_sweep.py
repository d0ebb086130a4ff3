"""Sweeps: every run with its own settings, once, whatever comes between."""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from absl import flags
from etils import epath

from configs import door
from train import sweep
from train.core import sinks, sweeps

PAGE = "configs/sweeps/micro.py:scale=0.1"
# In the place of a training: ends as the file `codes` says, life after life.
FAKE = """
  import json, pathlib, signal, sys, time
  folder = pathlib.Path(sys.argv[-1].partition("=")[2])
  codes = json.loads((folder.parent / "codes").read_text())
  lives = folder / "lives"
  n = len(lives.read_text()) if lives.exists() else 0
  lives.write_text("x" * (n + 1))
  steps = json.loads((folder / "config.json").read_text())["train"]["steps"]
  row = {"step": steps, "kind": "eval", "heldout_loss": 9 - n / 8}
  (folder / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
  code = codes.get(folder.name, [0])[min(n, len(codes.get(folder.name, [0])) - 1)]
  if code == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / "ready").write_text("")
    time.sleep(60)
  sys.exit(code)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
  """(codes of runs) to a call of the entrypoint; gives its exit code."""
  script = tmp_path / "fake.py"
  script.write_text(textwrap.dedent(FAKE))
  workdir = epath.Path(tmp_path) / "sweep"
  monkeypatch.setattr(
    sweeps, "program", lambda _: [sys.executable, str(script)]
  )
  monkeypatch.setattr(sweep.prepare, "prepare", lambda *_: None)

  def run(codes=None, index=None):
    workdir.mkdir(exist_ok=True)
    if codes is not None:
      (workdir / "codes").write_text(json.dumps(codes))
    monkeypatch.setattr(flags.FLAGS["config"], "value", PAGE)
    monkeypatch.setattr(flags.FLAGS["index"], "value", index)
    config = door.build(door.read(PAGE), sweep.SECTIONS)
    return sweep.main(config, workdir)

  run.workdir = workdir
  return run


def _plan(workdir) -> list[sweeps.Run]:
  config = door.build(door.read(PAGE), sweep.SECTIONS)
  overrides = door.ask_page(PAGE, "get_sweep")
  return sweeps.plan(config.to_dict(), overrides, sweep.SECTIONS, workdir)


def _lives(workdir) -> list[int]:
  return [
    len(path.read_text()) if (path := run.folder / "lives").exists() else 0
    for run in _plan(workdir)
  ]


def test_every_run_has_its_settings_and_all_share_the_text(tmp_path):
  runs = _plan(epath.Path(tmp_path))
  assert len(runs) == 12
  assert len({run.config.model.d_model for run in runs}) == 4
  for run in runs:
    for key, value in run.overrides.items():
      section, name = key.split(".")
      assert getattr(getattr(run.config, section), name) == value
    assert run.config.data.path == str(tmp_path / "store")
  # C = 6 N D: what a budget buys, to a step.
  for run in runs:
    budget = 0.1 * (2e11, 6e11, 2e12)[run.index // 4]
    spent = 6 * sweeps.n_params(run) * sweeps.n_tokens(run)
    one_step = 6 * sweeps.n_params(run) * 4 * 128
    assert abs(spent - budget) <= one_step / 2


def test_done_is_skipped_failed_goes_on_and_the_rest_runs(fake, capsys):
  assert fake({"002": [1, 0]}) == 1
  assert _lives(fake.workdir) == [1] * 12
  table = (fake.workdir / "table.md").read_text().splitlines()
  assert table[0].endswith("| seconds | status |")
  assert [row.split(" | ")[-1] for row in table[2:5]] == [
    "done |", "done |", "failed |",
  ]  # fmt: skip
  assert "001" not in capsys.readouterr().out.partition("run 3")[2]
  assert fake() == 0
  assert _lives(fake.workdir) == [1, 1, 2] + [1] * 9
  with (fake.workdir / "points.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 12 and float(rows[2]["loss"]) == 9 - 1 / 8
  assert int(rows[0]["N"]) == sweeps.n_params(_plan(fake.workdir)[0])


def test_one_run_of_an_array(fake):
  assert fake({}, index=3) == 0
  assert _lives(fake.workdir) == [0, 0, 0, 1] + [0] * 8
  with pytest.raises(ValueError, match="--index=12: the sweep has 12 runs"):
    fake(index=12)


def test_a_sweep_that_is_asked_to_stop_hands_it_on(fake):
  fake.workdir.mkdir()
  (fake.workdir / "codes").write_text(json.dumps({"000": ["wait", 0]}))
  run = _plan(fake.workdir)[0]
  child = os.fork()
  if not child:  # asks once the run stands
    while not (run.folder / "ready").exists():
      time.sleep(0.02)
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(0)
  assert fake() == 75
  os.waitpid(child, 0)
  assert run.status == "cut" and _lives(fake.workdir)[:2] == [1, 0]
  assert fake() == 0 and run.status == "done"


def test_other_settings_in_a_folder_are_refused(fake):
  fake({}, index=0)
  run = _plan(fake.workdir)[0]
  settings = run.config.to_dict()
  settings["optim"]["lr"] *= 2
  door.write(run.folder / "config.json", settings)
  with pytest.raises(ValueError, match="whose sections optim differ"):
    sweeps.start(run, sweeps.program(""))


def test_a_wrong_setting_names_its_run(tmp_path):
  config = door.build(door.read(PAGE), sweep.SECTIONS)
  wrong = [{"optim.lr": 1e-3}, {"optim.rl": 1e-3}]
  with pytest.raises(ValueError, match="run 1 of the sweep: .*optim.rl"):
    sweeps.plan(config.to_dict(), wrong, sweep.SECTIONS, epath.Path(tmp_path))
  with pytest.raises(ValueError, match="quickstart.py has no get_sweep"):
    door.ask_page("configs/quickstart.py", "get_sweep")


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_real_run_that_is_killed_goes_on(tmp_path):
  """As a person would: kill -9 of a sweep, and the same command again."""
  command = [
    *(sys.executable, "-m", "train.sweep", "--index=0"),
    "--config=configs/sweeps/micro.py:scale=0.1",
    f"--workdir={tmp_path}",
    "--config.checkpoint.every_steps=10",
  ]
  once = subprocess.Popen(command, start_new_session=True)
  folder = epath.Path(tmp_path) / "000" / "checkpoints"
  while not (folder / "10" / "manifest.json").exists():
    assert once.poll() is None
    time.sleep(0.1)
  os.killpg(once.pid, signal.SIGKILL)
  once.wait()
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("| done |") == 1
  output = (tmp_path / "000" / "output.txt").read_text()
  assert output.count("; compiled in ") == 2  # lives
  rows = [(row["step"], row["kind"]) for row in sinks.rows(folder.parent)]
  assert len(set(rows)) == len(rows) and rows[0] == (1, "train")
