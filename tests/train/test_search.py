"""Searches find what is low, sooner than by chance, and go on after a kill."""

import math
import statistics
import subprocess
import sys
import textwrap
import time

import pytest

from train.core import searching

LAWS = {"x": ("uniform", -5.0, 5.0), "y": ("log", 1e-4, 1.0), "z": (1, 2, 3)}


def surface(drawn) -> float:
  """Lowest at x = 1, y = 0.01, z = 2."""
  away = math.log10(drawn["y"] / 0.01)
  return (drawn["x"] - 1) ** 2 + away**2 + 3 * (drawn["z"] != 2)


def best_of(tmp_path, sampler: str, seed: int, n_trials: int = 40) -> float:
  search = searching.Search(laws=LAWS, sampler=sampler, seed=seed)
  url = f"sqlite:///{tmp_path}/{sampler}{seed}.db"
  made = searching.study(search, url, "s")
  searching.run(made, search, lambda _, drawn, __: surface(drawn), n_trials)
  assert len(made.trials) == n_trials
  return made.best_value


@pytest.mark.slow
def test_it_beats_chance_on_a_known_surface(tmp_path):
  found = {
    sampler: statistics.median(
      best_of(tmp_path, sampler, seed) for seed in range(7)
    )
    for sampler in ("tpe", "random")
  }
  assert found["tpe"] < 0.5 * found["random"], found


@pytest.mark.slow
def test_what_falls_behind_is_ended(tmp_path):
  """Runs whose figure falls to x squared; all that go on are told so."""
  search = searching.Search(laws={"x": ("uniform", 0.0, 10.0)}, pruned=True)
  made = searching.study(search, f"sqlite:///{tmp_path}/s.db", "s")

  def objective(_, drawn, report):
    for step in range(1, 28):
      figure = drawn["x"] ** 2 + 10 / step
      if report(step, figure):
        break
    return figure

  searching.run(made, search, objective, 40)
  states = [t.state.name for t in made.trials]
  assert states.count("PRUNED") >= 10 and states.count("COMPLETE") >= 5
  steps = {t.number: max(t.intermediate_values) for t in made.trials}
  pruned = [steps[t.number] for t in made.trials if t.state.name == "PRUNED"]
  assert statistics.mean(pruned) < 27
  table = searching.table(made, "loss").splitlines()
  assert len(table) == 42 and table[2].split(" | ")[0] == (
    f"| {made.best_trial.number}"
  )


@pytest.mark.slow
def test_a_study_whose_process_is_killed_makes_the_trial_again(tmp_path):
  """In the same folder, with the same settings; no trial is lost."""
  program = textwrap.dedent("""
    import json, os, signal, sys, time
    from train.core import searching
    searching._HEARTBEAT_SECONDS = 2
    folder = sys.argv[1]
    laws = {"x": ("uniform", -5.0, 5.0)}
    search = searching.Search(laws=laws)
    made = searching.study(search, f"sqlite:///{folder}/s.db", "s")
    def objective(number, drawn, report):
      with open(f"{folder}/log", "a") as log:
        log.write(json.dumps([number, drawn["x"]]) + "\\n")
      if number == 2 and not os.path.exists(f"{folder}/killed"):
        open(f"{folder}/killed", "w").close()
        time.sleep(3)  # until its heart has beaten once
        os.kill(os.getpid(), signal.SIGKILL)
      return drawn["x"] ** 2
    searching.run(made, search, objective, 8)
    print(json.dumps([t.state.name for t in made.trials]))
  """)
  command = [sys.executable, "-c", program, str(tmp_path)]
  assert subprocess.run(command).returncode == -9
  time.sleep(8)  # the grace of a trial whose heart no longer beats is 6
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / "log").read_text().splitlines()
  assert len(lines) == 9 and lines.count(lines[2]) == 2
  assert len(set(lines)) == 8  # what is drawn later is not drawn again
  assert done.stdout.count("COMPLETE") == 8 and done.stdout.count("FAIL") == 1


@pytest.mark.slow
def test_one_that_is_asked_to_stop_makes_the_trial_again(tmp_path):
  search = searching.Search(laws={"x": ("uniform", 0.0, 1.0)})
  made = searching.study(search, f"sqlite:///{tmp_path}/s.db", "s")
  seen = []

  def objective(number, drawn, report):
    seen.append((number, drawn["x"]))
    if len(seen) == 2:
      raise searching.Stopped
    return drawn["x"]

  with pytest.raises(searching.Stopped):
    searching.run(made, search, objective, 4)
  searching.run(made, search, objective, 4)
  assert seen[1] == seen[2] and len(seen) == 5


@pytest.mark.slow
def test_runs_that_all_fail_end_the_search(tmp_path):
  search = searching.Search(laws={"x": ("uniform", 0.0, 1.0)})
  made = searching.study(search, f"sqlite:///{tmp_path}/s.db", "s")

  def objective(number, drawn, report):
    raise RuntimeError(f"run {number} is broken")

  with pytest.raises(ValueError, match="3 runs failed.*run 0 .*run 2 "):
    searching.run(made, search, objective, 4)


def test_a_wrong_search_is_told():
  with pytest.raises(ValueError, match="goal='min': expected minimize or"):
    searching.Search(laws=LAWS, goal="min")
  with pytest.raises(ValueError, match="nothing to search"):
    searching.Search(laws={})
