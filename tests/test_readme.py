"""The commands of the README, run in its order by a shell (slow)."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Pages as the README has them take minutes each: these few steps do not.
SHORT = {
  **dict.fromkeys(
    ("quickstart", "lstm", "bert_tiny", "finetune_functions", "lora"), "steps=4"
  ),
  "word2vec": "epochs=1",
  "sweeps/micro": "scale=0.005,steps=4",
}
# Real weights from a package, a second checkpoint's figures, a judge's address,
# Ray: no command of the page makes them. tests/train/test_tasks.py, test_compare.py
# and test_rays.py run these commands on what they make themselves.
FROM_ELSEWHERE = ("runs/smollm2", "runs/others", "--by=ray")


def _commands() -> list[str]:
  """Its `python -m` lines but the benchmarks, pages cut short."""
  text = (ROOT / "README.md").read_text().replace("\\\n", " ")
  found = re.findall(r"^(python -m (?!benchmarks)[^#\n]+)", text, re.M)
  return [
    _short(command).strip()
    for command in found
    if not any(name in command for name in FROM_ELSEWHERE)
  ]


def _short(command: str) -> str:
  for page, argument in SHORT.items():
    page = f"--config=configs/{page}.py"
    command = command.replace(page, f"{page}:{argument}")
  return command.replace("train.search", "train.search --trials=2")


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_every_command_of_the_readme_runs(tmp_path):
  commands = _commands()
  assert len(commands) >= 20
  for path in ROOT.iterdir():
    if path.name != "runs":
      (tmp_path / path.name).symlink_to(path)
  runs = tmp_path / "runs"
  runs.mkdir()
  (runs / "demo").symlink_to("quick")  # `make demo` and the page make the same
  for command in commands:
    command = command.replace("python -m", f"{sys.executable} -m")
    done = subprocess.run(
      ["bash", "-c", command],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=1200,
      stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
  quick = runs / "quick"
  for name in ("metrics.jsonl", "evaluation.json", "curves.png", "samples.txt"):
    assert (quick / name).stat().st_size > 0
  assert list(quick.glob("events.out.tfevents*"))
