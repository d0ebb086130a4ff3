"""The commands of the README, run in its order by a shell (slow)."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _commands() -> list[str]:
  """Its `python -m` lines but the benchmarks, the page cut to a few steps."""
  text = (ROOT / "README.md").read_text().replace("\\\n", " ")
  found = re.findall(r"^(python -m (?!benchmarks)[^#\n]+)", text, re.M)
  page = "--config=configs/quickstart.py"
  return [command.replace(page, f"{page}:steps=4").strip() for command in found]


@pytest.mark.slow
def test_every_command_of_the_readme_runs(tmp_path):
  commands = _commands()
  assert len(commands) >= 7
  for command in commands:
    command = command.replace("python -m", f"{sys.executable} -m")
    command = re.sub(r"\bruns/", f"{tmp_path}/", command)
    done = subprocess.run(
      ["bash", "-c", command],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=600,
      stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
  quick = tmp_path / "quick"
  for name in ("metrics.jsonl", "evaluation.json", "curves.png", "samples.txt"):
    assert (quick / name).stat().st_size > 0
  assert list(quick.glob("events.out.tfevents*"))
