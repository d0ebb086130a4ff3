"""W&B's and MLflow's own files hold every step once, and a loss costs no run.

Both are read back without the libraries that wrote them: MLflow's database by
SQL, W&B's file by its definition.
"""

import collections
import json
import sqlite3
import struct

import pytest
from etils import epath

from train import pretrain
from train.core import services, sinks, track

# Extras that .venv/plan has.
pytestmark = pytest.mark.slow


def _in_mlflow(workdir, stage: str = "active") -> dict[str, dict[int, list]]:
  """Metric -> step -> values, of the runs that are (not) in the trash."""
  found = collections.defaultdict(lambda: collections.defaultdict(list))
  with sqlite3.connect(workdir / "mlflow" / "mlflow.db") as database:
    for key, step, value in database.execute(
      "select key, step, value from metrics join runs using (run_uuid)"
      " where lifecycle_stage = ?",
      (stage,),
    ):
      found[key][step].append(value)
  return found


def _records(path) -> list:
  """W&B's log is LevelDB's: blocks of 32 KiB, each record behind 7 bytes."""
  from wandb.proto import wandb_internal_pb2

  raw, at, parts, found = path.read_bytes(), 7, b"", []
  assert raw[:4] == b":W&B"
  while at + 7 <= len(raw):
    if 2**15 - at % 2**15 < 7:  # the rest of a block that holds no head
      at += 2**15 - at % 2**15
      continue
    _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
    parts += raw[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      found.append(wandb_internal_pb2.Record.FromString(parts))
      parts = b""
  return found


def _in_wandb(workdir) -> list[dict[int, dict[str, float]]]:
  """Step -> numbers, of each run as they began."""
  runs = []
  for path in (workdir / "wandb").glob("offline-run-*/*.wandb"):
    steps = {}
    for record in _records(path):
      if record.WhichOneof("record_type") == "run":
        began = record.run.start_time.ToNanoseconds()
      elif record.WhichOneof("record_type") == "history":
        items = {
          (i.key or "/".join(i.nested_key)): json.loads(i.value_json)
          for i in record.history.item
        }
        step = items.pop("_step")
        assert step not in steps
        steps[step] = items
    runs.append((began, steps))
  return [steps for _, steps in sorted(runs, key=lambda run: run[0])]


def _open(workdir, name: str, step: int = 0) -> track.Tracker:
  config = track.Config(trackers=(name,), name="a run")
  settings = {"optim": {"lr": 0.1}, "model": {"name": "llama"}}
  return track.open_tracker(epath.Path(workdir), step, config, settings)


def _say(tracker, first: int, last: int, loss: float) -> None:
  for step in range(first, last + 1):
    tracker.log(step, "train", {"loss": loss + step})
  tracker.text(last, "sample", f"so it <goes> at {last}")


def test_mlflow_has_every_step_once_whatever_was_gone_back_over(tmp_path):
  """A killed life, a resumed one, and one that goes back on its way."""
  with _open(tmp_path, "mlflow") as tracker:
    _say(tracker, 1, 5, 0.0)
  with _open(tmp_path, "mlflow", 3) as tracker:  # 4 and 5 are made again
    _say(tracker, 4, 6, 0.5)
    tracker.rewind(5)
    _say(tracker, 6, 7, 0.25)
  with _open(tmp_path, "mlflow", 7) as tracker:  # nothing was lost
    _say(tracker, 8, 8, 0.0)
  expected = {1: 1, 2: 2, 3: 3, 4: 4.5, 5: 5.5, 6: 6.25, 7: 7.25, 8: 8}
  rows = sinks.rows(epath.Path(tmp_path))
  assert {row["step"]: row["loss"] for row in rows} == expected
  assert _in_mlflow(tmp_path) == {
    "train/loss": {step: [loss] for step, loss in expected.items()}
  }
  assert _in_mlflow(tmp_path, "deleted")["train/loss"][5] == [5, 5.5]
  with sqlite3.connect(tmp_path / "mlflow" / "mlflow.db") as database:
    (name, status), *others = database.execute(
      "select name, status from runs where lifecycle_stage = 'active'"
    )
    params = dict(database.execute("select distinct key, value from params"))
  assert (name, status, others) == ("a run", "FINISHED", [])
  assert params == {"optim.lr": "0.1", "model.name": "llama"}
  texts = sorted((tmp_path / "mlflow" / "artifacts").rglob("*.txt"))
  assert {path.parent.name for path in texts} == {"5", "6", "7", "8"}


def test_wandb_has_every_step_once_in_the_newest_run(tmp_path):
  with _open(tmp_path, "wandb") as tracker:
    _say(tracker, 1, 5, 0.0)
  with _open(tmp_path, "wandb", 3) as tracker:
    _say(tracker, 4, 6, 0.5)
    tracker.rewind(5)
    _say(tracker, 6, 7, 0.25)
    tracker.log(7, "eval", {"heldout_loss": float("nan")})
  first, second, third = _in_wandb(tmp_path)
  assert list(first) == [1, 2, 3, 4, 5] and max(second) == 6
  losses = {step: items["train/loss"] for step, items in third.items()}
  assert losses == {1: 1, 2: 2, 3: 3, 4: 4.5, 5: 5.5, 6: 6.25, 7: 7.25}
  (page,) = (tmp_path / "wandb").rglob("sample_7_*.html")
  assert "so it &lt;goes&gt; at 7" in page.read_text()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_fails_is_told_once_and_costs_nothing(
  tmp_path, monkeypatch, capsys, name
):
  def fail(*_):
    raise RuntimeError("the server\nis gone")

  kind = {"mlflow": services.Mlflow, "wandb": services.Wandb}[name]
  with _open(tmp_path, name) as tracker:
    tracker.log(1, "train", {"loss": 1.0})
    monkeypatch.setattr(kind, "row", fail)
    for step in range(2, 50):
      tracker.log(step, "train", {"loss": 1.0})
  said = f"{name} cannot be written, the run goes on: the server is gone"
  assert capsys.readouterr().out.count(said) == 1
  assert len(sinks.rows(epath.Path(tmp_path))) == 49


def test_a_run_is_in_all_of_them(page, tmp_path):
  names = ("tensorboard", "mlflow", "wandb")
  config = page(
    log={"trackers": names},
    train={"steps": 3, "eval_every_steps": 3},
    eval={"during": ("perplexity",)},
  )
  pretrain.main(config, epath.Path(tmp_path))
  rows = sinks.rows(epath.Path(tmp_path))
  train = {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}
  told = _in_mlflow(tmp_path)
  assert {k: v for k, (v,) in told["train/loss"].items()} == train
  assert list(told["eval/heldout_loss"]) == [3]
  (run,) = _in_wandb(tmp_path)
  assert {k: v["train/loss"] for k, v in run.items()} == train
  assert "eval/heldout_loss" in run[3]
  assert list(tmp_path.glob("events.out.tfevents*"))
