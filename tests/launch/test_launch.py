"""The launchers: what they would run, read back by a shell."""

import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "launch"
COMMAND = ["python", "-m", "train.pretrain", "--config=configs/llama3_8b.py:a=1,b='x y'"]  # fmt: skip
WAYS = {
  "tpu_vm.sh": ["--name=pod", "--zone=us-east5-a"],
  "gke.sh": ["--name=r", "--cluster=c", "--type=v5p-256", "--image=i"],
  "slurm.sh": ["--nodes=4", "--gpus=2"],
}


def launch(script, *arguments):
  return subprocess.run(
    [FOLDER / script, *arguments], capture_output=True, text=True
  )


@pytest.mark.parametrize("script", WAYS)
def test_the_command_arrives_word_for_word_on_every_host(script):
  done = launch(script, *WAYS[script], "--dry_run", "--", *COMMAND)
  assert done.returncode == 0, done.stderr
  if script == "slurm.sh":
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("srun")]
    words = shlex.split(line.partition("||")[0])[2:]
    assert "#SBATCH --ntasks-per-node=1" in done.stdout.splitlines()
    assert "#SBATCH --gpus-per-node=2" in done.stdout.splitlines()
  else:
    last = shlex.split(done.stdout.splitlines()[-1])
    assert {"tpu_vm.sh": "--worker=all", "gke.sh": "--tpu-type=v5p-256"}[
      script
    ] in last
    (sent,) = [w for w in last if w.startswith("--command=")]
    words = shlex.split(sent.removeprefix("--command="))
  assert words[-len(COMMAND) :] == COMMAND


@pytest.mark.parametrize("script", WAYS)
def test_what_is_missing_is_named(script):
  done = launch(script, "--dry_run", "--", *COMMAND)
  assert done.returncode == 2
  assert done.stderr.startswith("error: --") and "missing" in done.stderr
  done = launch(script, *WAYS[script], "--dry_run")
  assert done.returncode == 2 and "no command" in done.stderr


def test_shellcheck_finds_nothing():
  beside = pathlib.Path(sys.executable).parent / "shellcheck"
  found = shutil.which("shellcheck") or str(beside)
  scripts = sorted(FOLDER.glob("*.sh"))
  done = subprocess.run(
    [found, "-x", "-P", FOLDER, *scripts], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout
