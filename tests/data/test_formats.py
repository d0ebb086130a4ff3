"""Each format gives the texts that went in; what is broken of it is named."""

import csv
import io
import json
import pathlib
import random
import resource
import struct
import sys
import zlib

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorboardX import record_writer

from data import sources
from data.sources import Bad, Document, Reading
from data.sources.payload import example

TEXTS = ["one\n\n", "zwei \u2028 é", "\tdrei\r\n,\"'", "数据🙂", "x" * 3_000]
TABLE = pa.table({"id": range(len(TEXTS)), "text": TEXTS})


def feature(name: str, value: bytes) -> bytes:
  """One entry of a tf.train.Example; every length fits into one byte or two."""

  def field(tag: int, raw: bytes) -> bytes:
    n = len(raw)
    size = [n] if n < 128 else [n & 127 | 128, n >> 7]
    return bytes([tag, *size]) + raw

  kinds = field(0x0A, field(0x0A, value))
  return field(0x0A, field(0x0A, name.encode()) + field(0x12, kinds))


def an_example(text: str) -> bytes:
  features = feature("id", b"7") + feature("text", text.encode())
  n = len(features)
  return bytes([0x0A, n & 127 | 128, n >> 7]) + features


def write_csv(path, dialect="excel"):
  with path.open("w", newline="") as file:
    rows = csv.writer(file, dialect)
    rows.writerow(["id", "text"])
    rows.writerows(enumerate(TEXTS))


def write_tfrecord(path, records=None):
  writer = record_writer.RecordWriter(str(path))
  for record in records or map(an_example, TEXTS):
    writer.write(record)
  writer.close()


def write_array_record(path, records=None):
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:2")
  for record in records or map(an_example, TEXTS):
    writer.write(record)
  writer.close()


def write_arrow_stream(path):
  with pa.ipc.new_stream(path, TABLE.schema) as writer:
    writer.write_table(TABLE, max_chunksize=2)


def write_arrow_file(path):
  with pa.ipc.new_file(path, TABLE.schema) as writer:
    writer.write_table(TABLE, max_chunksize=2)


def write_parquet(path, **more):
  pq.write_table(TABLE, path, row_group_size=2, **more)


WRITERS = {
  "a.csv": write_csv,
  "a.tsv": lambda path: write_csv(path, "excel-tab"),
  "a.parquet": write_parquet,
  "b.parquet": lambda path: write_parquet(path, use_dictionary=False),
  "a.arrow": write_arrow_stream,
  "b.arrow": write_arrow_file,
  "a.tfrecord": write_tfrecord,
  "a.tfrecords-00000-of-00001": write_tfrecord,
  "a.array_record": write_array_record,
  "a.arrayrecord-00000-of-00001": write_array_record,
  "b.array_record": lambda path: write_array_record(
    path, [json.dumps({"text": t}).encode() for t in TEXTS]
  ),
  "c.array_record": lambda path: write_array_record(
    path, [t.encode() for t in TEXTS]
  ),
}


def items(source, **kwargs):
  return [item for _, item in sources.read(str(source), Reading(**kwargs))]


def texts(found):
  return [item.text for item in found if isinstance(item, Document)]


@pytest.mark.parametrize("name", WRITERS)
def test_a_format_gives_the_texts_that_went_in(tmp_path, name):
  WRITERS[name](tmp_path / name)
  n_read = []
  found = items(tmp_path / name, on_read=n_read.append)
  assert texts(found) == TEXTS and len(found) == len(TEXTS)
  assert sum(n_read) == (tmp_path / name).stat().st_size
  if "sv" not in name:
    assert [d.id for d in found] == [f"{name}:{i}" for i in range(len(TEXTS))]
  for i in range(len(TEXTS)):
    place = (0, i + 1)
    rest = sources.read(str(tmp_path), Reading(), place)
    assert texts(x for _, x in rest) == TEXTS[i + 1 :]


def test_rows_of_csv_go_by_their_first_lines(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text('\ufefftext,n\na,1\n\n"b\nb",2\nc,3,4\n"d\n')
  found = items(path)
  assert [x.id for x in found[:2]] == ["a.csv:2", "a.csv:4"]
  assert texts(found) == ["a", "b\nb"]
  assert [(x.where.split(":")[1], x.kind) for x in found[2:]] == [
    ("6", "row"), ("7", "row"),
  ]  # fmt: skip


def test_csv_goes_on_after_a_quote_that_is_never_closed(tmp_path):
  path = tmp_path / "a.csv"
  body = "".join(f"{i},ok\n" for i in range(100))
  path.write_text('n,text\n0,"never\n' + body)
  found = items(path, max_bytes=100)
  assert isinstance(found[0], Bad) and found[0].kind == "row"
  assert len(texts(found)) > 70


def test_text_that_is_no_utf8_is_named_in_every_format(tmp_path):
  raw = [b"good", b"b\xffd", b"", b"n\0l"]
  table = pa.table({"text": pa.array(raw, pa.binary())})
  pq.write_table(table, tmp_path / "a.parquet")
  # Arrow's strings are UTF-8 by promise only.
  string = pa.StringArray.from_buffers(4, *table["text"].chunk(0).buffers()[1:])
  with pa.ipc.new_stream(
    tmp_path / "b.arrow", pa.schema({"text": pa.string()})
  ) as writer:
    writer.write_batch(pa.record_batch({"text": string}))
  write_array_record(tmp_path / "c.array_record", raw)
  (tmp_path / "d.csv").write_bytes(b"text,n\n" + b",1\n".join(raw) + b",1\n")
  write_tfrecord(tmp_path / "e.tfrecord", raw)
  for path in sorted(tmp_path.iterdir()):
    good, *bad = items(path)
    assert good.text == "good"
    assert [x.kind for x in bad] == ["utf8", "empty", "nul"]
    first = 2 if path.suffix == ".csv" else 0
    assert [x.where for x in bad] == [f"{path}:{first + i}" for i in (1, 2, 3)]


@pytest.mark.parametrize("name", WRITERS)
def test_a_column_or_feature_that_is_not_there(tmp_path, name):
  path = tmp_path / name
  WRITERS[name](path)
  if name == "c.array_record":  # plain text has no key
    return
  found = items(path, text_key="body")
  assert not texts(found) and found
  assert all(x.kind in ("damaged", "key") for x in found)
  assert all("no key 'body'; it has: " in x.reason for x in found)
  is_table = not found[0].where.endswith(":0")
  assert (found[0].lost_bytes > 0) == is_table


def test_numbers_are_no_text(tmp_path):
  pq.write_table(pa.table({"text": [1, None]}), tmp_path / "a.parquet")
  found = items(tmp_path / "a.parquet")
  assert [x.kind for x in found] == ["type", "type"]
  numbers = bytes.fromhex(
    "0a0f0a0d0a04746578741205 1a030a0107".replace(" ", "")
  )
  assert example(numbers) == {"text": None}
  write_tfrecord(tmp_path / "a.tfrecord", [numbers])
  (bad,) = items(tmp_path / "a.tfrecord")
  assert bad.kind == "type" and "holds numbers" in bad.reason


@pytest.mark.parametrize("name", ["a.parquet", "a.tfrecord", "a.array_record"])
def test_records_that_are_too_long_are_left_out(tmp_path, name):
  WRITERS[name](tmp_path / name)
  found = items(tmp_path / name, max_bytes=1_000)
  assert texts(found) == TEXTS[:-1]
  assert found[-1].kind == "long" and len(found[-1].excerpt) <= 480


COMPLETE = {  # formats that tell wherever they are cut
  "a.parquet", "b.parquet", "a.arrow", "b.arrow", "a.array_record",
}  # fmt: skip


@pytest.mark.parametrize("name", [*sorted(COMPLETE), "a.tfrecord"])
def test_a_file_that_is_cut_is_named(tmp_path, name):
  """D10: never a silently short epoch."""
  path = tmp_path / name
  WRITERS[name](path)
  raw, rng = path.read_bytes(), random.Random(0)
  borders = set()
  if name == "a.tfrecord":  # 16 bytes beside each payload
    sizes = [16 + len(an_example(text)) for text in TEXTS]
    borders = set(np.cumsum([0, *sizes]).tolist())
  cuts = {0, 1, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(60))}
  for cut in sorted(cuts - borders):
    path.write_bytes(raw[:cut])
    *good, last = items(path)
    assert isinstance(last, Bad) and last.kind == "damaged", cut
    assert last.where == str(path) and last.lost_bytes == max(cut, 1)
    assert f"{len(good)} were read before" in last.reason
    assert texts(good) == TEXTS[: len(good)]


@pytest.mark.parametrize("name", ["a.tfrecord", "a.array_record", "a.parquet"])
def test_a_flipped_bit_is_named_or_harmless(tmp_path, name):
  path = tmp_path / name
  if name == "a.parquet":
    write_parquet(path, write_page_checksum=True)
  else:
    WRITERS[name](path)
  raw, rng = path.read_bytes(), random.Random(0)
  used, n_named = np.flatnonzero(np.frombuffer(raw, np.uint8)), 0
  for _ in range(80):
    damaged = bytearray(raw)
    damaged[rng.choice(used)] ^= 1 << rng.randrange(8)
    path.write_bytes(damaged)
    found = items(path)
    is_named = any(isinstance(item, Bad) for item in found)
    assert set(texts(found)) <= set(TEXTS)
    assert is_named or texts(found) == TEXTS
    n_named += is_named
  assert n_named > 3


def test_a_bad_payload_of_tfrecord_costs_one_record(tmp_path):
  path = tmp_path / "a.tfrecord"
  write_tfrecord(path)
  raw = bytearray(path.read_bytes())
  raw[12 + 10] ^= 1
  path.write_bytes(raw)
  bad, *good = items(path)
  assert bad.kind == "checksum" and bad.where == f"{path}:0"
  assert texts(good) == TEXTS[1:]


def test_tfrecord_may_be_compressed(tmp_path):
  write_tfrecord(tmp_path / "a.tfrecord")
  raw = (tmp_path / "a.tfrecord").read_bytes()
  packed = zlib.compressobj(wbits=31)
  (tmp_path / "a.tfrecord").unlink()
  (tmp_path / "a.tfrecord.gz").write_bytes(
    packed.compress(raw) + packed.flush()
  )
  assert texts(items(tmp_path)) == TEXTS


def test_a_huge_record_of_tfrecord_is_not_held(tmp_path):
  path, size = tmp_path / "a.tfrecord", 60_000_000
  crc = google_crc32c.value
  mask = lambda x: ((x >> 15 | x << 17) + 0xA282EAD8) & 0xFFFFFFFF  # noqa: E731
  header = struct.pack("<Q", size)
  with path.open("wb") as file:
    file.write(header + struct.pack("<I", mask(crc(header))))
    body = b"y" * size
    file.write(body + struct.pack("<I", mask(crc(body))))
  del body
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  (bad,) = items(path, max_bytes=1 << 20)
  assert bad.kind == "long" and "60000000 bytes" in bad.reason
  assert bad.excerpt == "y" * 120
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8_000


def test_parquet_is_read_in_pieces_of_a_row_group(tmp_path):
  """One row group of 64 MB; Arrow never holds a third of it."""
  rng = np.random.default_rng(0)
  rows = [rng.bytes(32_000).hex() for _ in range(1_000)]
  path = tmp_path / "a.parquet"
  pq.write_table(
    pa.table({"text": rows}),
    path,
    compression="none",
    use_dictionary=False,
    write_batch_size=8,  # of which pages are cut
  )
  assert pq.ParquetFile(path).num_row_groups == 1
  del rows
  before, peak, n_read = pa.total_allocated_bytes(), 0, 0
  for _, item in sources.read(str(path), Reading()):
    n_read += len(item.text)
    peak = max(peak, pa.total_allocated_bytes() - before)
  assert n_read == 64_000_000 and peak < 24 << 20


class Small(tfds.core.GeneratorBasedBuilder):
  """Made by TensorFlow Datasets itself: what its folders look like."""

  VERSION = tfds.core.Version("1.0.0")
  pkg_dir_path = pathlib.Path(__file__).parent

  def _info(self):
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "label": np.int64}
      )
    )

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples() for name in ("train", "test")}

  def _generate_examples(self):
    for i, text in enumerate(TEXTS):
      yield i, {"text": text, "label": i}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  builder = Small(data_dir=folder, file_format="array_record")
  builder.download_and_prepare()
  truth = [e["text"].decode() for e in builder.as_data_source("train")]
  return folder / "small" / "1.0.0", truth


def test_tfds_is_read_without_tensorflow(prepared):
  folder, truth = prepared
  found = items(f"{folder}#train")
  assert texts(found) == truth and sorted(truth) == sorted(TEXTS)
  assert "tensorflow" not in sys.modules
  with pytest.raises(ValueError, match="name one of train, test"):
    items(folder)
  with pytest.raises(ValueError, match="has no split 'valid'"):
    items(f"{folder}#valid")
  with pytest.raises(ValueError, match="is a prepared data set"):
    items(folder.parent)


def test_tfds_counts_its_records(prepared, tmp_path):
  """D10: also where the file itself looks whole, in either format."""
  folder, _ = prepared
  info = json.loads((folder / "dataset_info.json").read_text())
  for kind, write in (
    ("array_record", write_array_record),
    ("tfrecord", write_tfrecord),
  ):
    copy = tmp_path / kind
    copy.mkdir()
    info["fileFormat"] = kind
    (copy / "dataset_info.json").write_text(json.dumps(info))
    (copy / "features.json").write_text("{}")
    shard = copy / f"small-train.{kind}-00000-of-00001"
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
      items(f"{copy}#train")
    write(shard)
    assert texts(items(f"{copy}#train")) == TEXTS
    write(shard, [an_example(text) for text in TEXTS[:3]])
    *good, last = items(f"{copy}#train")
    assert texts(good) == TEXTS[:3]
    assert last.kind == "damaged" and "should have 5 records" in last.reason
  info["fileFormat"] = "parquet"
  (copy / "dataset_info.json").write_text(json.dumps(info))
  with pytest.raises(ValueError, match="was prepared as parquet"):
    items(f"{copy}#train")


def test_what_save_to_disk_leaves_is_read(tmp_path):
  """The layout of datasets 5.2: a folder of Arrow streams and a state."""
  names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
  for split in ("train", "test"):
    folder = tmp_path / split
    folder.mkdir()
    for i, name in enumerate(names):
      part = TABLE.slice(3 * i, 3)
      with pa.ipc.new_stream(folder / name, part.schema) as writer:
        writer.write_table(part)
    listed = [{"filename": name} for name in names]
    state = {"_data_files": listed, "_fingerprint": "x", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
  (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  assert texts(items(f"{tmp_path}#train")) == TEXTS
  assert texts(items(tmp_path / "test")) == TEXTS
  with pytest.raises(ValueError, match="name one of train, test"):
    items(tmp_path)
  with pytest.raises(ValueError, match="leave out '#test'"):
    items(f"{tmp_path}/test#test")
  (tmp_path / "test" / names[1]).unlink()
  with pytest.raises(ValueError, match=f"{names[1]} is missing"):
    items(f"{tmp_path}#test")
  state["_indices_data_files"] = [{"filename": "indices.arrow"}]
  (tmp_path / "test" / "state.json").write_text(json.dumps(state))
  with pytest.raises(ValueError, match="flatten_indices"):
    items(f"{tmp_path}#test")


def test_an_example_is_taken_apart_as_tensorflow_writes_it(prepared):
  """The oracle is TensorFlow Datasets' own serializer."""
  folder, truth = prepared
  (path,) = folder.glob("*train*")
  reader = array_record_module.ArrayRecordReader(str(path))
  found = [example(raw) for raw in reader.read_all()]
  assert [e["text"] for e in found] == [[text.encode()] for text in truth]
  assert all(e["label"] is None for e in found)


def test_random_bytes_are_no_example():
  rng = np.random.default_rng(0)
  for _ in range(2_000):
    raw = b"\n" + rng.bytes(int(rng.integers(40)))
    try:
      found = example(raw)
    except (ValueError, IndexError):
      continue
    assert isinstance(found, dict)


def test_a_text_may_begin_like_another_kind(tmp_path):
  path = tmp_path / "a.array_record"
  write_array_record(path, [b"\nnew line", b'{"text": "json"}', b"{% block %}"])
  found = items(path)
  assert texts(found) == ["\nnew line", "json"]
  assert found[2].kind == "json"


def test_the_buffers_of_arrow_are_checked(tmp_path):
  """Offsets that point outside of the file would be read otherwise."""
  sink = io.BytesIO()
  with pa.ipc.new_stream(sink, TABLE.schema) as writer:
    writer.write_table(TABLE)
  raw = bytearray(sink.getvalue())
  offsets = np.cumsum([0, *(len(t.encode()) for t in TEXTS)]).astype("<i4")
  at = raw.index(offsets.tobytes())
  raw[at + 4 : at + 8] = struct.pack("<i", 1 << 30)
  (tmp_path / "a.arrow").write_bytes(raw)
  (last,) = items(tmp_path / "a.arrow")
  assert last.kind == "damaged"
