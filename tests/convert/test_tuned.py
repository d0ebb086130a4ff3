"""SmolLM2 after a few steps of LoRA: better, merged, the same in transformers.

Where the package cannot be had, these tests are skipped.
"""

import pathlib

import pytest
from etils import epath

pytest.importorskip("transformers")

from benchmarks.parity import written  # noqa: E402
from configs import door  # noqa: E402
from convert import gguf, hf, merge  # noqa: E402
from data import functions, sources  # noqa: E402
from models import base  # noqa: E402
from sharding import mesh  # noqa: E402
from tests.convert.test_real_weights import file_of  # noqa: E402
from tests.train.test_tasks import jsonl  # noqa: E402
from train import lora  # noqa: E402
from train.evaluators import exam, subject, task  # noqa: E402

pytestmark = [pytest.mark.real_weights, pytest.mark.parity]
ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def rows():
  """Some hundred functions, and eight of another module."""
  found = {"train": [], "heldout": []}
  for document in sources.documents("stdlib"):
    is_apart = document.id.endswith("statistics.py")
    found["heldout" if is_apart else "train"] += functions.instructions(
      document.text
    )
    if len(found["train"]) > 150 and found["heldout"]:
      break
  apart = functions.unseen(found["heldout"], found["train"])
  return found["train"][:150], apart[:8]


@pytest.fixture(scope="module")
def tuned(rows, tmp_path_factory):
  """A base, an adapter of four steps beside it, and the two merged."""
  folder = epath.Path(tmp_path_factory.mktemp("tuned"))
  gguf.take(file_of("smollm2"), folder / "base")
  source = jsonl(folder / "rows.jsonl", rows[0])
  page = door.read(f"{ROOT}/configs/lora_smollm2.py:steps=4,source={source}")
  overrides = [f"base.path={folder}/base", "batch.size=8", "batch.length=128"]
  overrides += ["eval.during=", "data.heldout_fraction=0.1"]
  filled, overrides = base.fill(page, overrides)
  lora.main(door.build(filled, lora.SECTIONS, overrides), folder / "lora")
  merge.merge(folder / "lora", folder / "merged")
  return folder


def loss(path, rows, folder):
  """Of the sources of functions, behind what is asked."""
  file = jsonl(folder / "heldout.jsonl", rows)
  page = f"{ROOT}/configs/tasks/functions.py:item=known,rows={file}"
  who = subject.load(path, mesh.Config(), batch_tokens=1024)
  result, _ = exam.ask(who, task.load(page))
  return result["metrics"]["loss"]["value"]


def test_four_steps_help_and_the_merge_keeps_it(rows, tuned, tmp_path):
  found = [
    loss(tuned / name, rows[1], tmp_path) for name in ("base", "lora", "merged")
  ]
  assert found[1] < found[0] - 0.1
  assert found[2] == pytest.approx(found[1], rel=1e-4)


def test_transformers_writes_the_same_tokens(rows, tuned):
  hf.give(tuned / "merged", tuned / "theirs")
  questions = [row["instruction"] for row in rows[1][:4]]
  ours = written.ours(tuned / "merged", questions, 24)
  assert ours == written.theirs(tuned / "theirs", questions, 24)
  assert ours != written.ours(tuned / "base", questions, 24)
