"""One job in a workdir (C13): who holds it, who takes it over, never two."""

import concurrent.futures
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from train.core import lock


@pytest.fixture
def workdir(tmp_path) -> epath.Path:
  return epath.Path(tmp_path) / "run"


def _leave(workdir, **changes) -> None:
  """A lock as another process left it."""
  owner = dataclasses.replace(lock._myself(), **changes)
  workdir.mkdir()
  (workdir / "lock").write_text(json.dumps(dataclasses.asdict(owner)))


def test_it_is_there_while_held(workdir):
  with lock.hold(workdir):
    held = json.loads((workdir / "lock").read_text())
    assert held["pid"] == os.getpid() and held["host"] == socket.gethostname()
  assert not (workdir / "lock").exists()
  with pytest.raises(KeyboardInterrupt), lock.hold(workdir):
    raise KeyboardInterrupt
  assert not (workdir / "lock").exists()


def test_a_living_job_is_named(workdir):
  with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as other:
    birth = lock._birth(other.pid)
    _leave(workdir, pid=other.pid, birth=birth, since="2026-01-02T03:04:05Z")
    said = (
      rf"in use: process {other.pid} on {socket.gethostname()} has it since "
      r"2026-01-02T03:04:05Z(.|\n)*another --workdir"
    )
    with pytest.raises(ValueError, match=said), lock.hold(workdir):
      pass
    other.communicate(b"\n")
  with lock.hold(workdir):  # it has ended
    assert json.loads((workdir / "lock").read_text())["pid"] == os.getpid()


def test_a_pid_that_was_given_again_is_no_owner(workdir):
  _leave(workdir, birth="1")  # our own pid, but born with the machine
  with lock.hold(workdir):
    pass


def test_a_dead_child_that_nobody_waited_for_is_gone(workdir):
  dead = subprocess.Popen([sys.executable, "-c", ""])
  birth = lock._birth(dead.pid)
  os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
  _leave(workdir, pid=dead.pid, birth=birth)
  with lock.hold(workdir):
    pass
  dead.wait()


@pytest.mark.parametrize("silent, is_free", [(30, False), (121, True)])
def test_another_machine_is_known_by_its_silence(workdir, silent, is_free):
  _leave(workdir, host="gpu007", machine="another boot", pid=1)
  then = time.time() - silent
  os.utime(workdir / "lock", (then, then))
  if is_free:
    with lock.hold(workdir):
      pass
  else:
    with pytest.raises(ValueError, match="gpu007"), lock.hold(workdir):
      pass


def test_the_owner_gives_signs_of_life(workdir, monkeypatch):
  monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
  with lock.hold(workdir):
    os.utime(workdir / "lock", (0, 0))
    _wait_until(lambda: (workdir / "lock").stat().mtime > 0)
    (workdir / "lock").unlink()  # by a person who thought that it was left
    _wait_until(lambda: lock._read(workdir / "lock"))


def test_an_owner_that_was_given_up_ends(workdir, monkeypatch):
  """It would write over the checkpoints of the one that took its place."""
  ended = []
  monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
  monkeypatch.setattr(lock.os, "_exit", ended.append)
  with lock.hold(workdir):
    new = json.dumps(dataclasses.asdict(lock._myself()) | {"pid": 1})
    (workdir / "lock").write_text(new)
    _wait_until(lambda: ended)
  assert ended[0] == 1
  assert (workdir / "lock").exists()  # it is not ours to remove


@pytest.mark.parametrize("left", ["", '{"host": "h', "[]", '{"pid": 1}'])
def test_a_torn_lock_is_free(workdir, left):
  workdir.mkdir()
  (workdir / "lock").write_text(left)
  with lock.hold(workdir):
    pass


def test_a_workdir_that_cannot_be_is_told(workdir):
  workdir.parent.joinpath("run").write_text("a file")
  with pytest.raises(ValueError, match="cannot be written"):
    with lock.hold(workdir):
      pass


def _wait_until(is_so) -> None:
  until = time.monotonic() + 60
  while not is_so():
    assert time.monotonic() < until
    time.sleep(0.005)


def test_of_many_at_once_one_wins(tmp_path):
  """Also where all of them find the lock of a process that is gone."""
  n_rivals = 8
  start = threading.Barrier(n_rivals)

  def rival(workdir, name):
    me = dataclasses.replace(lock._myself(), since=str(name))
    start.wait()
    return lock._take(workdir / "lock", me) is None

  with concurrent.futures.ThreadPoolExecutor(n_rivals) as pool:
    for i in range(30):
      workdir = epath.Path(tmp_path) / str(i)
      _leave(workdir, birth="1")
      won = list(pool.map(rival, [workdir] * n_rivals, range(n_rivals)))
      assert won.count(True) == 1
      assert lock._read(workdir / "lock").since == str(won.index(True))
