"""Runs laid over each other: what they took, where they ended, what differs."""

import json

import numpy as np
import pytest
from etils import epath
from matplotlib import image

from configs import door
from models import flops
from train import compare
from train.core import goodput, overlay


@pytest.fixture
def runs(page, tmp_path):
  """Two logs as a run writes them: the second logs less often, and resumes."""
  made = {"one": (page(), (1, 2, 4, 6)), "two": (None, (1, 5, 6))}
  made["two"] = page(optim={"lr": 0.5}, batch={"length": 16}), made["two"][1]
  for name, (config, steps) in made.items():
    folder = epath.Path(tmp_path) / name
    folder.mkdir()
    door.write(folder / "config.json", config.to_dict())
    rows = [
      {"step": s, "kind": "train", "loss": 8 / s, "step_seconds": 0.5}
      for s in steps
    ]
    rows.append({"step": 6, "kind": "eval", "heldout_loss": 2.5})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
  return [str(epath.Path(tmp_path) / name) for name in made]


def test_what_runs_took_is_counted(runs, page):
  config = page()
  for run, n_tokens in zip(overlay.read(runs), (8 * 32, 8 * 16), strict=True):
    points = run.curves()
    per_token = flops.train_per_token(config.model, n_tokens // 8)
    for over, per_step in (
      ("step", 1),
      ("tokens", n_tokens),
      ("FLOPs", n_tokens * per_token),
      ("seconds of training", 0.5),
    ):
      x, loss = np.array(points["training loss", over]).T
      np.testing.assert_allclose(x, per_step * 8 / loss, rtol=1e-12)
      assert points["held-out loss", over] == [(6 * per_step, 2.5)]


def test_compare_ends_with_a_picture_and_a_line(runs, tmp_path, capsys):
  assert compare.main(runs) == 0
  out = capsys.readouterr().out
  told = json.loads(out.splitlines()[-1])
  assert told["differ"] == {
    "optim.lr": {"one": 0.01, "two": 0.5},
    "batch.length": {"one": 32, "two": 16},
  }
  assert told["runs"]["one"]["tokens"] == 6 * 256
  assert told["runs"]["two"]["lowest held-out loss"] == 2.5
  assert "optim.lr" in out and "  none" not in out
  pixels = image.imread(told["picture"])[..., :3].reshape(-1, 3)
  for color in ((31, 119, 180), (255, 127, 14)):  # both curves are there
    near = np.abs(pixels - np.array(color)[None] / 255).max(-1) < 0.02
    assert near.sum() > 500


def test_compare_refuses_by_name(runs, tmp_path):
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(ValueError, match="empty is no run that has made steps"):
    compare.main([runs[0], str(empty)])
  with pytest.raises(ValueError, match="expected runs, as"):
    compare.main(runs[:1])
  with pytest.raises(ValueError, match="expected runs, as"):
    compare.main([*runs, "--picutre=x.png"])
  with pytest.raises(ValueError, match="names a run twice"):
    compare.main([runs[0], runs[0] + "/"])
  compare.main([*runs, f"--picture={tmp_path}/here.png"])
  assert (tmp_path / "here.png").exists()


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
  (tmp_path / "deep").mkdir()
  (tmp_path / "deep" / "one").symlink_to(tmp_path / "two")
  names = [run.name for run in overlay.read([runs[0], f"{tmp_path}/deep/one"])]
  assert len({*names}) == 2


def test_goodput_is_told_where_there_is_one(runs):
  run = overlay.read(runs)[0]
  assert run.ended()["goodput"] is None
  life = {"n_lost": 0, "n_made": 6, "to_step": 6, "from_step": 0}
  seconds = dict.fromkeys(goodput.CLASSES, 0.0) | {"step": 3.0, "compile": 1.0}
  life |= {"seconds": seconds, "began": 0.0, "ended": 4.0}
  (run.folder / goodput.FILE).write_text(json.dumps(life) + "\n")
  assert run.ended()["goodput"] == 0.75
