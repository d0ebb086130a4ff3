"""Every second belongs to one class: T10."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from train import pretrain
from train.core import goodput


def test_seconds_add_up_to_the_time_that_passed(tmp_path):
  list(goodput._starts)  # the start of this process is not this run's
  began = time.perf_counter()
  ledger = goodput.Ledger(epath.Path(tmp_path))
  with ledger.spend("step"):
    time.sleep(0.05)
    with ledger.spend("checkpoint"):
      time.sleep(0.1)
    time.sleep(0.05)
  time.sleep(0.05)
  ledger.write()
  wall = time.perf_counter() - began
  total = goodput.account(goodput.lives(epath.Path(tmp_path)))
  np.testing.assert_allclose(sum(total.values()), wall, rtol=0.01, atol=0.02)
  assert total["step"] >= 0.1
  assert total["checkpoint"] >= 0.1 and total["other"] >= 0.05


@pytest.mark.slow
def test_a_real_run_accounts_for_its_wall_time(page, tmp_path):
  """From the start of the process to its last line, within 1 %."""
  settings = epath.Path(tmp_path) / "config.json"
  settings.write_text(json.dumps(page(mesh={"data": -1}).to_dict()))
  workdir = epath.Path(tmp_path) / "run"
  began = time.time()
  process = subprocess.Popen(
    [sys.executable, "-m", "train.pretrain", f"--config={settings}"]
    + [f"--workdir={workdir}"],
    stdout=subprocess.PIPE,
    text=True,
  )
  lines = [(line, time.time()) for line in process.stdout]
  assert process.wait() == 0
  last, at = lines[-1]
  assert "goodput" in last
  (life,) = goodput.lives(workdir)
  total = goodput.account([life])
  # 0.2 s: a busy machine starts a process and hands over a line late.
  np.testing.assert_allclose(
    sum(total.values()), at - began, rtol=0.01, atol=0.2
  )
  assert abs(life["began"] - began) < 0.5
  assert life["to_step"] == life["n_made"] == 6
  assert total["compile"] > 0 and total["checkpoint"] > 0


def test_work_that_is_done_again_is_lost(page, tmp_path):
  def life(began, ended, first, last, step_seconds, n_lost=0):
    seconds = dict.fromkeys(goodput.CLASSES, 0.0)
    seconds |= {"step": step_seconds, "start": ended - began - step_seconds}
    return {
      "began": began, "ended": ended, "from_step": first, "to_step": last,
      "n_made": last - first, "n_lost": n_lost, "seconds": seconds,
    }  # fmt: skip

  lives = [
    life(100, 150, 0, 40, 40.0),  # killed at 40, saved at 30: 10 lost
    life(155, 200, 30, 70, 40.0, n_lost=4),  # four were not applied
  ]
  total = goodput.account(lives)
  assert total["lost"] == 10 + 4
  assert total["step"] == 80 - 14
  assert total["down"] == 5
  assert sum(total.values()) == 100
  assert goodput.describe(total).startswith("goodput 66.0%: steps took 66.0 of")


def test_a_resumed_run_keeps_its_account(page, tmp_path):
  workdir = epath.Path(tmp_path)
  pretrain.main(page(train={"steps": 3}), workdir)
  pretrain.main(page(train={"steps": 6}), workdir)
  first, second = goodput.lives(workdir)
  assert (first["from_step"], first["to_step"]) == (0, 3)
  assert (second["from_step"], second["to_step"]) == (3, 6)
  total = goodput.account([first, second])
  wall = second["ended"] - first["began"]
  np.testing.assert_allclose(sum(total.values()), wall, rtol=0.01)
