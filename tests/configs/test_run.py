"""The door from outside: what a person at a terminal sees, and exit codes (T14)."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
ENTRYPOINT = '''"""Says what it is for."""

import dataclasses

from absl import flags
from etils import epath

from configs import door

_PROMPT = flags.DEFINE_string("prompt", "hello", "text to start from")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  steps: int = 10  # how many updates
  fail: str = ""  # what goes wrong


SECTIONS = {"train": Train}


def main(config, workdir):
  print(config.train.steps, workdir, _PROMPT.value)
  match config.train.fail:
    case "ours":
      door.load(workdir / "config.jsn", SECTIONS)
    case "missing":
      door.read(workdir / "config.jsn")
    case "theirs":
      raise ValueError("raised outside of the repository")
    case "disk":  # a path's own line raises, a line of the house called it
      door.write(epath.Path("/dev/full/x"), {})
    case "interrupt":
      raise KeyboardInterrupt
    case "preempted":
      return 75
    case "talkative":
      for i in range(100_000):
        print(i)


if __name__ == "__main__":
  door.run(main, SECTIONS)
'''
PAGE = '''"""A page."""

from configs import common


def get_config(arg=""):
  arg = common.parse_arg(arg, steps=5)
  config = common.base()
  config.train = dict(steps=arg.steps)
  return config
'''


@pytest.fixture
def terminal(tmp_path):
  """Runs the sample entrypoint: arguments -> (exit code, stdout, stderr)."""
  (tmp_path / "entry.py").write_text(ENTRYPOINT)
  (tmp_path / "page.py").write_text(PAGE)

  def run(*arguments):
    done = subprocess.run(
      [sys.executable, tmp_path / "entry.py", *arguments],
      env={"PYTHONPATH": str(ROOT), "PATH": ""},
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=60,
    )
    return done.returncode, done.stdout, done.stderr

  return run


def test_help_shows_purpose_flags_and_settings(terminal):
  code, out, _ = terminal("--help")
  assert code == 0
  assert out.startswith("Says what it is for.")
  assert "--prompt" in out and "text to start from" in out
  assert max(map(len, out.splitlines())) <= 80
  assert "steps" in out and "int = 10" in out and "how many updates" in out


def test_flags_reach_main(terminal):
  code, out, _ = terminal(
    "--config=page.py:steps=7", "--workdir=w", "--prompt=x"
  )
  assert (code, out) == (0, "7 w x\n")
  code, out, _ = terminal(
    "--config=page.py", "--workdir=w", "--config.train.steps", "8"
  )
  assert (code, out) == (0, "8 w hello\n")


def test_without_a_page_the_workdir_is_read(terminal, tmp_path):
  (tmp_path / "w").mkdir()
  (tmp_path / "w" / "config.json").write_text(
    json.dumps({"train": {"steps": 3, "fail": ""}})
  )
  assert terminal("--workdir=w")[:2] == (0, "3 w hello\n")


@pytest.mark.parametrize(
  "arguments, words",
  [
    ((), "--workdir=DIR is missing"),
    (("--workdir=w",), "holds no config.json"),
    (("--workdir=w", "--config=pag.py"), "nearest there: page.py"),
    (("--workdir=w", "--config=no/pag.py"), "nothing lies there"),
    (("--workdir=w", "--config=page.py:step=3"), "the nearest is steps"),
    (
      ("--workdir=w", "--config=page.py", "--config.train.step=3"),
      "the nearest is config.train.steps (int)",
    ),
    (("--workdir=w", "--config=page.py", "--confg=x"), "Did you mean: config"),
    (("--workdir=w", "--config=page.py", "x"), "unexpected argument 'x'"),
    (
      ("--workdir=w", "--config=page.py", "--config.train.fail=ours"),
      "config.jsn is no .json file",
    ),
    (
      ("--workdir=w", "--config=page.py", "--config.train.fail=missing"),
      "there is no file w/config.jsn",
    ),
    (
      ("--workdir=w", "--config=page.py", "--config.train.fail=disk"),
      "Not a directory",
    ),
  ],
)
def test_a_mistake_is_plain_and_exits_with_2(terminal, arguments, words):
  code, _, err = terminal(*arguments)
  assert code == 2
  assert words in err and "Traceback" not in err
  assert len(err.splitlines()) <= 5


@pytest.mark.parametrize(
  "fail, code, traceback",
  [("theirs", 1, True), ("interrupt", 130, False), ("preempted", 75, False)],
)
def test_exit_codes(terminal, fail, code, traceback):
  found, _, err = terminal(
    "--workdir=w", "--config=page.py", f"--config.train.fail={fail}"
  )
  assert found == code
  assert ("Traceback" in err) == traceback


def test_a_reader_who_leaves_is_no_crash(tmp_path):
  """As in `python -m data.show ... | head`."""
  (tmp_path / "entry.py").write_text(ENTRYPOINT)
  (tmp_path / "page.py").write_text(PAGE)
  arguments = [
    "--workdir=w",
    "--config=page.py",
    "--config.train.fail=talkative",
  ]
  with subprocess.Popen(
    [sys.executable, tmp_path / "entry.py", *arguments],
    env={"PYTHONPATH": str(ROOT), "PATH": ""},
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
  assert process.returncode == 0
