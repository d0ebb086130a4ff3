"""Asked to stop (C7, T14): by which signals, how often, by all processes."""

import os
import signal
import subprocess
import sys
import time

import portpicker
import pytest

from train.core import preemption

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_asks(number, capfd):
  with preemption.Preemption() as asked:
    assert not asked.is_asked(1)
    signal.raise_signal(number)
    assert asked.is_asked(2) and asked.is_asked(3)
  assert f"{number.name}: saving" in capfd.readouterr().err


def test_the_handlers_before_come_back():
  before = [signal.getsignal(number) for number in NUMBERS]
  with pytest.raises(RuntimeError), preemption.Preemption():
    assert [signal.getsignal(number) for number in NUMBERS] != before
    raise RuntimeError
  assert [signal.getsignal(number) for number in NUMBERS] == before


def test_a_second_interrupt_ends_at_once(monkeypatch):
  codes = []
  monkeypatch.setattr(preemption.os, "_exit", codes.append)
  with preemption.Preemption():
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # schedulers repeat themselves
    assert codes == []
    signal.raise_signal(signal.SIGINT)
  assert codes == [130]


_STUBBORN = """
import time
from train.core import preemption
with preemption.Preemption():
  print("ready", flush=True)
  time.sleep(600)
"""


def test_a_process_that_does_not_stop_is_stopped_by_the_second(tmp_path):
  log = tmp_path / "log"
  with log.open("w") as file:
    process = subprocess.Popen(
      [sys.executable, "-c", _STUBBORN], stdout=file, stderr=file
    )
  try:
    for words in ("ready", "SIGINT: saving behind this step"):
      while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
      process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "ending at once" in log.read_text()
  finally:
    process.kill()


_JOINED = """
import os, signal, sys, time
import jax
from sharding import hosts
from train.core import preemption
hosts.initialize()
with preemption.Preemption() as asked:
  step = 0
  while not asked.is_asked(step):
    step += 1
    if step == 10 and jax.process_index() == 1:
      signal.raise_signal(getattr(signal, sys.argv[1]))
    time.sleep(0.02 * (1 + jax.process_index()))
    assert step < 3000
print(step)
"""


def test_all_processes_stop_behind_one_step():
  """One of two is interrupted; they go at different speeds."""
  address = f"127.0.0.1:{portpicker.pick_unused_port()}"
  started = [
    subprocess.Popen(
      [sys.executable, "-c", _JOINED, "SIGINT"],
      env={
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(i),
      },
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  steps = [process.communicate(timeout=120)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0]
  assert steps[0] == steps[1] and int(steps[0]) > 10
