"""Hosts: found in the environment, counted before they start."""

import threading

import portpicker
import pytest

from sharding import hosts


def test_plain_ssh():
  found = hosts.find(
    dict(
      JAX_COORDINATOR_ADDRESS="a:81", JAX_NUM_PROCESSES="4", JAX_PROCESS_ID="2"
    )
  )
  assert found == hosts.Cluster(host="a", port=81, n_processes=4, process=2)


def test_slurm():
  found = hosts.find(
    dict(
      SLURM_STEP_NODELIST="gpu[007-009,12],cpu1",
      SLURM_NTASKS="8",
      SLURM_PROCID="3",
    )
  )
  assert (found.host, found.n_processes, found.process) == ("gpu007", 8, 3)
  assert hosts.first_node("login1") == "login1"


def test_tpu_pod():
  found = hosts.find(dict(TPU_WORKER_HOSTNAMES="t0,t1", TPU_WORKER_ID="1"))
  assert (found.host, found.n_processes, found.process) == ("t0", 2, 1)


def test_alone():
  assert hosts.find({}) is None


@pytest.mark.parametrize(
  ("environment", "said"),
  [
    (dict(JAX_COORDINATOR_ADDRESS="a:1"), "JAX_NUM_PROCESSES is not"),
    (
      dict(
        JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="2"
      ),
      "from 0 to 1",
    ),
    (
      dict(
        JAX_COORDINATOR_ADDRESS="a:x", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1"
      ),
      "not numeric",
    ),
  ],
)
def test_contradictions_are_told(environment, said):
  with pytest.raises(ValueError, match=said):
    hosts.find(environment)


def _call(n_here: int, n_processes: int, timeout: float) -> list[str]:
  port, heard = portpicker.pick_unused_port(), [""] * n_here

  def answer(process):
    cluster = hosts.Cluster(
      host="127.0.0.1", port=port, n_processes=n_processes, process=process
    )
    try:
      hosts.roll_call(cluster, timeout)
    except TimeoutError as error:
      heard[process] = str(error)

  threads = [threading.Thread(target=answer, args=(i,)) for i in range(n_here)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return heard


def test_a_full_roll_call_lets_all_go():
  assert _call(3, 3, timeout=20.0) == ["", "", ""]


def test_all_hear_who_is_missing():
  heard = _call(2, 4, timeout=1.0)
  assert len(set(heard)) == 1
  assert heard[0].startswith("process 2, 3 of 4 did not come to 127.0.0.1:")


def test_a_missing_leader_is_named():
  cluster = hosts.Cluster(
    host="127.0.0.1",
    port=portpicker.pick_unused_port(),
    n_processes=2,
    process=1,
  )
  with pytest.raises(TimeoutError, match="the leader, process 0 at 127.0.0.1"):
    hosts.roll_call(cluster, 0.5)
