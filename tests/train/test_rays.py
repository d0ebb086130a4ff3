"""Searches by Ray: the same trials, on a real cluster of this one machine."""

import importlib.util
import json
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from train.core import rays, searching

needs_ray = pytest.mark.skipif(
  importlib.util.find_spec("ray") is None,
  reason="no Ray (240 MB): make ray installs it",
)
LAWS = {
  "optim.lr": ("log", 1e-4, 1e-1),
  "optim.weight_decay": ("uniform", 0.0, 1.0),
  "schedule.warmup_steps": ("uniform", 1, 3),
  "optim.b2": (0.9, 0.99),
}
PAGE = """
  from configs import common

  def get_config(arg=""):
    config = common.base()
    config.model = dict(
      name="llama", vocab_size=264, d_model=16, n_layers=1, n_heads=2,
      n_kv_heads=1, d_head=8, d_ff=32, max_length=32, dtype="float32",
    )
    config.tokenizer = dict(kind="bytes", vocab_size=259)
    config.data = dict(sources=({corpus!r},), heldout_fraction=0.2)
    config.batch = dict(size=4, length=32)
    config.optim = dict(name="adamw", lr=1e-2)
    config.schedule = dict(name="cosine")
    config.train = dict(steps=20, log_every_steps=5, eval_every_steps=5)
    config.checkpoint = dict(every_steps=10)
    config.eval = dict(during=("perplexity",), final=())
    return config

  def get_search(arg=""):
    return dict(laws={laws!r}, pruned=True)
"""


# Trials without runs: figures fall to x squared; the third waits for `go`.
FAKE = """
  import json, pathlib, sys, time
  from etils import epath
  from train.core import rays, searching

  folder, n_trials, is_pruned = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
  laws = {"x": ("uniform", 0.0, 10.0)}
  search = searching.Search(laws=laws, metric="loss", pruned=bool(is_pruned))

  def objective(number, drawn, report, is_asked):
    with open(folder / "log", "a") as log:
      log.write(json.dumps([number, drawn["x"]]) + "\\n")
    while number == 2 and not (folder / "go").exists():
      time.sleep(0.1)
      if is_asked():
        raise searching.Stopped
    for step in range(1, 28):
      figure = drawn["x"] ** 2 + 10 / step
      if report(step, figure):
        break
    return figure

  with rays.cluster(""):
    made = searching.study(search, f"sqlite:///{folder}/s.db", "s")
    try:
      rays.run(made, search, objective, n_trials, epath.Path(folder), {"CPU": 1})
    except searching.Stopped:
      sys.exit(75)
  steps = [max(t.intermediate_values, default=0) for t in made.trials]
  print(json.dumps([[t.state.name for t in made.trials], steps]))
"""


def fake(folder, n_trials: int, is_pruned: bool = False) -> list[str]:
  program = textwrap.dedent(FAKE)
  return [sys.executable, "-c", program, str(folder), str(n_trials)] + [
    str(int(is_pruned))
  ]


def log(folder) -> list[list[float]]:
  """Number and x of every trial that began."""
  path = folder / "log"
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def until_two_have_ended(process, folder) -> None:
  """Then the third is under way, and the fourth, if it began, has no room."""
  for line in process.stdout:
    if line.startswith("trial 1: loss"):
      break
  while 2 not in [number for number, _ in log(folder)]:
    assert process.poll() is None
    time.sleep(0.1)


@pytest.fixture
def command(corpus, tmp_path, one_device, monkeypatch):
  # All trials compile the same: the first of them, for all.
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
  page = tmp_path / "page.py"
  text = textwrap.dedent(PAGE)
  page.write_text(text.format(corpus=f"{corpus}/*.txt", laws=LAWS))
  workdir = tmp_path / "search"
  return [
    *(sys.executable, "-m", "train.search", f"--config={page}"),
    *(f"--workdir={workdir}", "--by=ray", "--takes=CPU=1", "--trials=4"),
  ]


@needs_ray
@pytest.mark.slow
def test_trials_are_drawn_made_and_told(command):
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  workdir = pathlib.Path(command[4].partition("=")[2])
  *lines, last = done.stdout.splitlines()
  best = json.loads(last)
  table = (workdir / "table.md").read_text().splitlines()[2:]
  rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table]
  assert len(rows) == 4 and rows[0][0] == str(best["trial"])
  assert min(float(row[-2]) for row in rows) == float(rows[0][-2])
  assert {row[-1] for row in rows} <= {"complete", "pruned"}
  told = [line for line in lines if line.startswith("trial ")]
  assert len(told) == 8, done.stdout  # each begins and ends
  for number in range(4):
    config = json.loads((workdir / f"{number:03}/config.json").read_text())
    assert 1e-4 <= config["optim"]["lr"] <= 1e-1
    assert 0 <= config["optim"]["weight_decay"] <= 1
    assert config["schedule"]["warmup_steps"] in (1, 2, 3)
    assert config["optim"]["b2"] in (0.9, 0.99)
    assert (workdir / f"{number:03}/outcome.json").exists()


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_has_ended_is_not_made_again(tmp_path, number):
  """Killed or asked to stop: the trial that was cut is made, with its settings."""
  command = fake(tmp_path, 4)
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  until_two_have_ended(process, tmp_path)
  process.send_signal(number)
  assert process.wait() == (75 if number == signal.SIGTERM else -number)
  began = log(tmp_path)
  cut = [trial for trial in began if trial[0] == 2]
  (tmp_path / "go").touch()
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  states, _ = json.loads(done.stdout.splitlines()[-1])
  assert states.count("COMPLETE") == 4
  later = log(tmp_path)[len(began) :]
  assert cut[0] in later
  assert not {0, 1} & {folder for folder, _ in later}


@needs_ray
@pytest.mark.slow
def test_asha_ends_what_falls_behind(tmp_path):
  (tmp_path / "go").touch()
  command = fake(tmp_path, 16, is_pruned=True)
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  states, steps = json.loads(done.stdout.splitlines()[-1])
  by_state = {
    state: [n for s, n in zip(states, steps, strict=True) if s == state]
    for state in ("COMPLETE", "PRUNED")
  }
  assert len(by_state["PRUNED"]) >= 3 and len(states) == 16
  assert set(by_state["PRUNED"]) <= {1, 3, 9, 27}
  assert set(by_state["COMPLETE"]) == {27}


@needs_ray
@pytest.mark.slow
def test_a_space_of_ray_is_what_the_study_draws_from(tmp_path):
  """So a search goes on, whoever made the trials before."""
  from ray.tune.search.optuna import OptunaSearch

  search = searching.Search(laws=LAWS)
  made = searching.study(search, f"sqlite:///{tmp_path}/s.db", "s")
  searching.run(made, search, lambda *_: 0.0, 1)
  found = OptunaSearch.convert_search_space(rays.space(LAWS))
  assert found == made.trials[0].distributions


def test_without_ray_it_is_refused(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(ValueError, match=r"ray is not installed.*'\.\[ray\]'"):
    with rays.cluster(""):
      pass
