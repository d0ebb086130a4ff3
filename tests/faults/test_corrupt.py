"""A dose of benchmarks/faults/corrupt.py: nothing wrong is taken for right.

C3, C4.
"""

import random

import pytest
from etils import epath

from benchmarks.faults import corrupt
from configs import door
from models import manifest
from serve import generate
from train import evaluate

N = 80


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
  return corrupt.Scene(epath.Path(tmp_path_factory.mktemp("scene")))


@pytest.mark.slow
def test_a_dose_is_seen(scene):
  found = corrupt.hurt_often(N, scene)
  assert found["wrong"] == []
  assert found["silent"] == found["crashed"] == 0
  assert found["cases"] == N
  assert found["recovered"] == found["checkpoint_cases"] > N / 2
  assert found["harmless"] < N / 4


def test_without_digests_it_is_the_instrument_that_tells(scene, monkeypatch):
  monkeypatch.setattr(manifest, "verify", lambda *_, **__: None)
  found = corrupt.hurt_often(N // 2, scene)
  assert found["silent"] > 0
  assert not corrupt.is_kept(found)


@pytest.mark.parametrize("place", ["params", "tokenizer", "manifest.json"])
def test_no_reader_takes_a_damaged_checkpoint(scene, place):
  """As a person calls them: one line, exit code 2."""
  rng = random.Random(0)
  path, _ = scene.choose(place, rng)
  with corrupt.hurt(path, corrupt.flip(path.read_bytes(), rng, [])):
    for reader in (evaluate, generate):
      sections = {name: scene.config.sections[name] for name in reader.SECTIONS}
      config = door.Config(sections, scene.config.names)
      with pytest.raises(SystemExit) as ended, door.plain_mistakes():
        reader.main(config, scene.workdir)
      assert ended.value.code == 2
  scene.mend()


def test_what_else_lies_in_a_checkpoint_is_not_read(scene):
  """As a copy that an editor left: it is not in the manifest."""
  expected = scene.resume()
  for path in (scene.newer / "data").iterdir():
    stray = path.parent / f"{path.name}~"
    stray.write_bytes((scene.older / "data" / path.name).read_bytes())
  assert scene.resume() == expected
  stray.unlink()


def test_two_damaged_checkpoints_are_no_start(scene):
  """Nor is a run begun anew over them."""
  with (
    corrupt.hurt(scene.older / "card.json", b"{}"),
    corrupt.hurt(scene.newer / "config.json", b"{}"),
    pytest.raises(ValueError, match="no checkpoint in .* verifies"),
  ):
    scene.resume()
