"""What a run says reaches its files; a disk that is full costs the log only."""

import importlib.util
import struct
import threading

import pytest
from etils import epath
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from train.core import conflicts, sinks, track


def _events(folder) -> list[event_pb2.Event]:
  """Reads TensorBoard's files by their definition: length, crc, bytes, crc."""
  found = []
  for path in sorted(folder.glob("events.out.tfevents*")):
    raw = path.read_bytes()
    while raw:
      (length,) = struct.unpack("<Q", raw[:8])
      found.append(event_pb2.Event.FromString(raw[12 : 12 + length]))
      raw = raw[16 + length :]
  return found


def test_curves_and_texts_are_events(tmp_path):
  with track.open_tracker(epath.Path(tmp_path), 0) as tracker:
    tracker.log(3, "train", {"loss": 2.5})
    tracker.text(4, "sample", "so it goes")
  version, loss, sample = _events(tmp_path)
  assert version.file_version == "brain.Event:2"
  assert (loss.step, loss.summary.value[0].tag) == (3, "train/loss")
  assert loss.summary.value[0].simple_value == 2.5
  assert sample.step == 4
  assert b"so it goes" in sample.summary.value[0].tensor.string_val[0]


def test_a_resumed_run_hides_what_came_after(tmp_path):
  for step in (0, 6):
    with track.open_tracker(epath.Path(tmp_path), step) as tracker:
      tracker.log(step + 1, "train", {"loss": 1.0})
  started = [e for e in _events(tmp_path) if e.HasField("session_log")]
  assert [event.step for event in started] == [7]
  assert started[0].session_log.status == event_pb2.SessionLog.START


def test_a_full_disk_costs_the_log(tmp_path, monkeypatch, capsys):
  """/dev/full takes no byte; the run is told once, and can end."""
  monkeypatch.setattr(
    record_writer, "open_file", lambda _: open("/dev/full", "wb")
  )
  monkeypatch.setattr(track.board, "_FLUSH_SECONDS", -1)
  tracker = track.open_tracker(epath.Path(tmp_path), 0)
  for step in range(100):
    tracker.log(step, "train", {"loss": 1.0})
  tracker.close()
  assert capsys.readouterr().out.count("tensorboard cannot be written") == 1
  assert [row["step"] for row in sinks.rows(epath.Path(tmp_path))] == list(
    range(100)
  )


def test_a_disk_with_room_again_is_written_from_where_it_was(tmp_path):
  """What a life begins with is kept until it can be written."""
  folder = epath.Path(tmp_path) / "gone"
  log = sinks.Jsonl(folder)
  row = {"step": 1, "kind": "train", "loss": 2.0}
  with pytest.raises(OSError):
    log.begin(sinks.Past(1, [row], [], False))
  folder.mkdir()
  log.row(2, "train", {"loss": 1.0})
  log.close()
  assert [row["step"] for row in sinks.rows(folder)] == [1, 2]


def test_texts_are_read_back_and_rewound(tmp_path):
  folder = epath.Path(tmp_path)
  said = [sinks.Text(2, "sample", "a\n\nb\n"), sinks.Text(3, "python", "")]
  for step in (0, 2):
    with track.open_tracker(folder, step) as tracker:
      for text in said[bool(step) :]:
        tracker.text(*text)
  assert sinks.texts(folder) == said


def test_going_back_hides_what_the_run_itself_wrote(tmp_path):
  folder = epath.Path(tmp_path)
  with track.open_tracker(folder, 0) as tracker:
    for step in (1, 2, 3):
      tracker.log(step, "train", {"loss": 1.0})
    tracker.rewind(1)
    tracker.log(2, "train", {"loss": 0.5})
  assert [row["loss"] for row in sinks.rows(folder)] == [1.0, 0.5]


def test_a_slow_tracker_holds_up_no_other(tmp_path, monkeypatch):
  """metrics.jsonl is written while TensorBoard has yet to take its first."""
  turn, begun = threading.Event(), threading.Event()

  def wait(*_):
    begun.set()
    turn.wait()

  monkeypatch.setattr(track.board.Board, "begin", wait)
  folder = epath.Path(tmp_path)
  tracker = track.open_tracker(folder, 0)
  begun.wait()
  tracker.log(1, "train", {"loss": 1.0})
  tracker.rewind(1)  # reads what was written
  assert len(sinks.rows(folder)) == 1
  turn.set()
  tracker.close()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_told_first(page, monkeypatch, name):
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
  conflicts.check(page())
  with pytest.raises(ValueError, match=rf"{name}, which .*'\.\[{name}\]'"):
    conflicts.check(page(log={"trackers": ("tensorboard", name)}))


@pytest.mark.parametrize(
  "ignored",
  [{"name": "x"}, {"mlflow_uri": "http://a"}, {"wandb_mode": "online"}],
)
def test_what_no_tracker_reads_is_told(ignored):
  with pytest.raises(ValueError, match="alone: add that to trackers"):
    track.Config(**ignored)
  track.Config(trackers=("wandb", "mlflow"), **ignored)
