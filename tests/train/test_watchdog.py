"""A hang becomes stacks and an exit: T9."""

import faulthandler
import subprocess
import sys

import pytest
from etils import epath

from train import pretrain
from train.core import setup, watchdog

HANGS = """
import threading
from train.core import watchdog

def waits_for_a_peer():
  threading.Event().wait()

threading.Thread(target=waits_for_a_peer, daemon=True).start()

def never_ends():
  while True:
    pass

with watchdog.Watchdog(1):
  never_ends()
"""


def _run(program):
  return subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
  )


def test_a_hang_tells_all_stacks_and_exits():
  done = _run(HANGS)
  assert done.returncode == 1
  assert "never_ends" in done.stderr and "waits_for_a_peer" in done.stderr


def test_what_beats_goes_on():
  done = _run(
    "import time\n"
    "from train.core import watchdog\n"
    "with watchdog.Watchdog(1) as dog:\n"
    "  for _ in range(8):\n"
    "    time.sleep(0.2)\n"
    "    dog.beat()\n"
    "dog.beat()\n"
    "time.sleep(1.2)\n"
  )
  assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_long_preparation_is_no_hang(page, tmp_path, monkeypatch):
  """Hours of text are prepared before the clock runs, and steps beside it."""
  beats, prepared = [], []
  begin, beat = setup.begin, watchdog.Watchdog.beat

  def prepare(*arguments):
    s = begin(*arguments)
    prepared.append(len(beats))
    return s

  def count(self):
    beats.append(self)
    beat(self)

  monkeypatch.setattr(setup, "begin", prepare)
  monkeypatch.setattr(watchdog.Watchdog, "beat", count)
  pretrain.main(page(train={"steps": 3}), epath.Path(tmp_path))
  assert prepared == [0]
  assert len(beats) > 3


def test_behind_its_end_a_run_ends_no_process(page, tmp_path, monkeypatch):
  """A notebook goes on for hours behind the run that it made."""
  calls = []
  arms, cancels = "dump_traceback_later", "cancel_dump_traceback_later"
  for name in (arms, cancels):
    monkeypatch.setattr(
      faulthandler, name, lambda *_, name=name, **__: calls.append(name)
    )
  pretrain.main(page(train={"steps": 3}), epath.Path(tmp_path))
  assert arms in calls
  assert calls[-1] == cancels
