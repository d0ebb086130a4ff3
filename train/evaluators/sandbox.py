"""Runs a program that a model wrote, in a process that may do little.

The process has an empty folder, no environment, a bound on processor seconds,
memory, file size, open files and wall time, and dumps no core; where the kernel
lets it, it is alone in a name space without a network. At its end the whole
process group is killed.

What it does not stop: reading every file that this user may read, writing
outside of the folder where this user may (up to 1 MB a file), starting further
processes up to the machine's own limit where users are not parted, and, on a
kernel that refuses name spaces, the network. It is a guard against accidents
and clumsy programs, no wall against an attacker: for a model that you do not
trust, run all of `train.evaluate` in a container or a virtual machine.
"""

import contextlib
import ctypes
import os
import pathlib
import resource
import runpy
import signal
import subprocess
import sys
import tempfile

WALL_SECONDS = 10.0
CPU_SECONDS = 5
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET


def passes(program: str, wall_seconds: float = WALL_SECONDS) -> bool:
  """Whether a Python program ends by itself, in time, without an error.

  It has to reach its last line: one that leaves early by `exit(0)` fails.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "program.py"
    done = pathlib.Path(folder) / "done"
    mark = f"open({str(done)!r}, 'x').close()"
    path.write_text(f"{program}\n{mark}\n", errors="surrogatepass")
    command = [sys.executable, "-I", "-B", __file__, str(path)]
    process = subprocess.Popen(
      command,
      cwd=folder,
      env={},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    try:
      code = process.wait(wall_seconds)
    except subprocess.TimeoutExpired:
      code = -1
    finally:
      # Also what it left behind.
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    return code == 0 and done.exists()


def _confine() -> None:
  for what, bound in (
    (resource.RLIMIT_CPU, CPU_SECONDS),
    (resource.RLIMIT_AS, MEMORY_BYTES),
    (resource.RLIMIT_FSIZE, FILE_BYTES),
    (resource.RLIMIT_NOFILE, 32),
    (resource.RLIMIT_CORE, 0),
  ):
    resource.setrlimit(what, (bound, bound))
  # Fails where the kernel allows users no name spaces: see above.
  ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NET)


if __name__ == "__main__":
  _confine()
  runpy.run_path(sys.argv[1], run_name="__main__")
