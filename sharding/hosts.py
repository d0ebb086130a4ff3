"""Many processes as one: who leads, who is here, and who is missing.

The leader's address, the number of processes and one's own number come from the
environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID (plain
ssh), SLURM's variables, or TPU_WORKER_HOSTNAMES and TPU_WORKER_ID (TPU pods on
GKE); on TPU VMs jax asks the metadata server itself.

Before jax starts, the processes answer a roll call at the leader's address:
where one is missing, jax itself would abort all others without a name.
"""

import collections
import dataclasses
import os
import re
import socket
import time

import jax
from jax._src import distributed  # the only way to the leader's keys

_PORT = 7733  # of the leader, where the environment names none
_GATHER_SECONDS = 1800
_GATHERED: collections.Counter[str] = collections.Counter()  # by channel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
  """Processes 0 to n_processes - 1; 0 leads and listens at host:port."""

  host: str
  port: int
  n_processes: int
  process: int


def initialize(timeout_seconds: float = 300) -> None:
  """Joins the processes of this run, once; nothing where there is but one.

  Raises:
    ValueError: settings that contradict each other.
    TimeoutError: names the processes that did not come in time.
  """
  if jax.distributed.is_initialized():
    return
  cluster = find(os.environ)
  if cluster is None:
    on_tpu_vm = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    if on_tpu_vm and "TPU_SKIP_MDS_QUERY" not in os.environ:
      jax.distributed.initialize()
    return
  if cluster.n_processes == 1:
    return
  roll_call(cluster, timeout_seconds)
  jax.distributed.initialize(
    f"{cluster.host}:{cluster.port}",
    cluster.n_processes,
    cluster.process,
    local_device_ids=gpus(os.environ),
  )


def find(environment: os._Environ | dict[str, str]) -> Cluster | None:
  """Reads the cluster from the environment; None where it names none."""
  e = environment
  if address := e.get("JAX_COORDINATOR_ADDRESS"):
    host, _, port = address.partition(":")
    return _cluster(
      host,
      port or str(_PORT),
      _need(e, "JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS"),
      _need(e, "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"),
    )
  if "SLURM_STEP_NODELIST" in e and int(e.get("SLURM_NTASKS", 1)) > 1:
    leader = first_node(e["SLURM_STEP_NODELIST"])
    return _cluster(leader, str(_PORT), e["SLURM_NTASKS"], e["SLURM_PROCID"])
  if names := e.get("TPU_WORKER_HOSTNAMES"):
    hosts = names.split(",")
    worker = _need(e, "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES")
    return _cluster(hosts[0], str(_PORT), str(len(hosts)), worker)
  return None


def gpus(environment: os._Environ | dict[str, str]) -> list[int] | None:
  """All GPUs of the node where SLURM starts one process on each.

  Unasked, jax takes one of them and leaves the others idle.
  """
  e = environment
  if e.get("SLURM_NTASKS_PER_NODE") != "1" or "SLURM_GPUS_ON_NODE" not in e:
    return None
  return list(range(int(e["SLURM_GPUS_ON_NODE"])))


def first_node(nodes: str) -> str:
  """The first name of a SLURM node list: `gpu[007-009,12],cpu1` -> gpu007."""
  prefix, numbers = re.match(r"([^,\[]+)(?:\[([0-9]+))?", nodes).groups()
  return prefix + (numbers or "")


def _need(environment, name: str, because: str) -> str:
  if name not in environment:
    raise ValueError(f"{because} is set and {name} is not: set both, or none.")
  return environment[name]


def _cluster(host: str, port: str, n: str, process: str) -> Cluster:
  try:
    cluster = Cluster(
      host=host, port=int(port), n_processes=int(n), process=int(process)
    )
  except ValueError:
    raise ValueError(
      f"the cluster {host}:{port} with process {process!r} of {n!r} is not "
      "numeric: see sharding/hosts.py for the variables."
    ) from None
  if not 0 <= cluster.process < cluster.n_processes:
    raise ValueError(
      f"process {cluster.process} of {cluster.n_processes}: numbers go from 0 "
      f"to {cluster.n_processes - 1}."
    )
  return cluster


def roll_call(cluster: Cluster, timeout_seconds: float) -> None:
  """Returns when all processes are here.

  Raises:
    TimeoutError: in every process that came, the numbers of those that did
      not, and the names of the hosts that are here.
  """
  deadline = time.monotonic() + timeout_seconds
  if cluster.process == 0:
    verdict = _lead(cluster, deadline)
  else:
    verdict = _answer(cluster, deadline)
  if verdict:
    raise TimeoutError(verdict)


def _lead(cluster: Cluster, deadline: float) -> str:
  here = {0: socket.gethostname()}
  lines: list[socket.socket] = []
  with socket.create_server(("", cluster.port)) as server:
    while len(here) < cluster.n_processes:
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        line, _ = server.accept()
        line.settimeout(5)
        number, name = line.makefile().readline().split()
      except TimeoutError:
        break
      except (OSError, ValueError):
        continue  # whoever this was, it is none of ours
      here[int(number)] = name
      lines.append(line)
    missing = sorted(set(range(cluster.n_processes)) - here.keys())
    verdict = ""
    if missing:
      present = ", ".join(f"{i} on {name}" for i, name in sorted(here.items()))
      verdict = (
        f"process {', '.join(map(str, missing))} of {cluster.n_processes} did "
        f"not come to {cluster.host}:{cluster.port}; here are {present}. Start "
        "it, or lower the number of processes."
      )
    for line in lines:
      with line:
        line.sendall(f"{verdict}\n".encode())
  return verdict


def _answer(cluster: Cluster, deadline: float) -> str:
  while True:
    left = deadline - time.monotonic()
    try:
      address = (cluster.host, cluster.port)
      # The leader tells who is missing a little after our own deadline.
      with socket.create_connection(address, timeout=max(left, 0.1)) as line:
        line.settimeout(max(left, 0.1) + 10)
        line.sendall(f"{cluster.process} {socket.gethostname()}\n".encode())
        return line.makefile().readline().strip()
    except OSError as error:
      if left <= 0:
        return (
          f"the leader, process 0 at {cluster.host}:{cluster.port}, did not "
          f"answer process {cluster.process} in time: {error}."
        )
      time.sleep(min(0.5, max(left, 0)))


def gather(text: str, channel: str = "main") -> list[str]:
  """What every process says, by process; all of them must call it together.

  It goes over the leader, not over the devices: on whatever thread, at any time.

  Args:
    text: what this process says.
    channel: threads that gather at the same time need one each.

  Raises:
    TimeoutError: a process has not said anything for half an hour.
  """
  if jax.process_count() == 1:
    return [text]
  client, me = distributed.global_state.client, jax.process_index()
  number = _GATHERED[channel]
  _GATHERED[channel] += 1
  client.key_value_set(f"{channel}/{number}/{me}", f"={text}")
  said = []
  for process in range(jax.process_count()):
    try:
      key = f"{channel}/{number}/{process}"
      said.append(client.blocking_key_value_get(key, _GATHER_SECONDS * 1000))
    except jax.errors.JaxRuntimeError as error:
      raise TimeoutError(f"process {process} does not answer") from error
  if number:  # all have come to this one, so all have read the last one
    client.key_value_delete(f"{channel}/{number - 1}/{me}")
  return [text.removeprefix("=") for text in said]
