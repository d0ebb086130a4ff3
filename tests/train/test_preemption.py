"""Asked to stop (C7, T14): by which signals, how often, by all processes."""

import json
import os
import signal
import subprocess
import sys
import time

import portpicker
import pytest
from etils import epath

from benchmarks.faults import runs
from models import checkpoint
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


@pytest.mark.slow
def test_two_hosts_that_are_asked_go_on_to_the_same_bits(page, tmp_path):
  """One of two hosts gets SIGTERM; both save behind one step and exit with 75."""
  config = page(train={"steps": 150}, mesh={"data": 2})
  settings = tmp_path / "config.json"
  settings.write_text(json.dumps(config.to_dict()))

  def start(workdir):
    address = f"127.0.0.1:{portpicker.pick_unused_port()}"
    return [
      subprocess.Popen(
        [sys.executable, "-m", "train.pretrain", f"--config={settings}"]
        + [f"--workdir={workdir}"],
        env={
          **os.environ,
          "XLA_FLAGS": "",
          "JAX_COORDINATOR_ADDRESS": address,
          "JAX_NUM_PROCESSES": "2",
          "JAX_PROCESS_ID": str(i),
        },
        stdout=(tmp_path / f"{workdir.name}.{i}.log").open("a"),
        stderr=subprocess.STDOUT,
      )
      for i in range(2)
    ]

  def said() -> str:
    return (tmp_path / "asked.0.log").read_text()

  asked = start(tmp_path / "asked")
  while "20/150" not in said():
    assert asked[0].poll() is None, said()
    time.sleep(0.01)
  asked[1].send_signal(signal.SIGTERM)
  assert [process.wait(timeout=300) for process in asked] == [75, 75], said()
  (step,) = checkpoint.steps(epath.Path(tmp_path / "asked"))
  assert 20 <= step < 150
  for workdir in (tmp_path / "asked", tmp_path / "calm"):
    ended = [process.wait(timeout=300) for process in start(workdir)]
    assert ended == [0, 0]
  assert runs.digest(epath.Path(tmp_path / "asked")) == runs.digest(
    epath.Path(tmp_path / "calm")
  )
