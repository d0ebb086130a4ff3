"""What a run says reaches its files; a disk that is full costs the log only."""

import struct

from etils import epath
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from train.core import track


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
  assert capsys.readouterr().out.count("the log cannot be written") == 1
  assert [row["step"] for row in track.rows(epath.Path(tmp_path))] == list(
    range(100)
  )
