"""What a run goes on with: its checkpoint's settings are the truth (C10)."""

import json

import pytest
from etils import epath

from configs import door
from models import manifest
from train import pretrain
from train.core import setup


@pytest.fixture
def begun(page, tmp_path):
  """A run that has saved steps 2 and 4, as far as settings go."""
  workdir = epath.Path(tmp_path)
  settings = page().to_dict()
  for step in (2, 4):
    path = workdir / "checkpoints" / str(step)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(settings))
    manifest.seal(path)
  return workdir


def settle(workdir, config) -> list[str]:
  said = []
  setup.settle(config, workdir, pretrain.SECTIONS, said.append)
  return said


def test_the_workdir_gets_the_settings_with_their_digest(begun, page):
  assert settle(begun, page()) == []
  assert door.load(begun / "config.json", pretrain.SECTIONS) == page()
  assert [p.name for p in begun.glob("config*")] == ["config.json"]


@pytest.mark.parametrize(
  ("was", "flipped"), [("0.01", "0.09"), ('"d_ff": 64', '"d_ff": 65')]
)
def test_a_flipped_digit_in_the_workdir_is_told(begun, page, was, flipped):
  settle(begun, page())
  path = begun / "config.json"
  assert was in path.read_text()
  path.write_text(path.read_text().replace(was, flipped, 1))
  with pytest.raises(ValueError, match="not as it was written") as error:
    door.load(path, pretrain.SECTIONS)
  assert "checkpoints/STEP/config.json" in str(error.value)


def test_who_changes_it_on_purpose_drops_the_digest(begun, page):
  """What is fixed is refused by the checkpoint, what is not is said."""
  settle(begun, page())
  path = begun / "config.json"
  settings = json.loads(path.read_text())
  del settings["sha256"]
  settings["optim"]["lr"] = 0.02
  path.write_text(json.dumps(settings))
  said = settle(begun, door.load(path, pretrain.SECTIONS))
  assert said == [f"unlike {begun}/checkpoints/4: optim.lr was 0.01, is 0.02"]
  settings["model"]["d_ff"] = 65
  path.write_text(json.dumps(settings))
  with pytest.raises(ValueError, match="model.d_ff=64, and now it is 65"):
    settle(begun, door.load(path, pretrain.SECTIONS))


@pytest.mark.parametrize("section", ["model", "tokenizer", "data", "batch"])
def test_the_config_of_another_run_is_refused(begun, page, section):
  """Put over this one's: its own digest is right."""
  key, value = {
    "model": ("rope_theta", 20_000.0),
    "tokenizer": ("sample_bytes", 1000),
    "data": ("heldout_fraction", 0.1),
    "batch": ("n_interleaved", 2),
  }[section]
  other = page(**{section: {key: value}})
  door.write(begun / "config.json", other.to_dict())
  read = door.load(begun / "config.json", pretrain.SECTIONS)
  with pytest.raises(ValueError, match=f"made with {section}.{key}="):
    settle(begun, read)


def test_a_damaged_config_of_a_checkpoint_is_not_the_truth(begun, page):
  path = begun / "checkpoints" / "4" / "config.json"
  path.write_text(path.read_text().replace('"d_ff": 64', '"d_ff": 65'))
  assert settle(begun, page()) == []  # compared with step 2
  assert settle(begun, page(optim={"lr": 0.5}))[0].startswith(
    f"unlike {begun}/checkpoints/2: optim.lr"
  )


def test_without_a_checkpoint_anything_goes(page, tmp_path):
  assert settle(epath.Path(tmp_path) / "new", page()) == []
