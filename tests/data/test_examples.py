"""Records of every kind of file become examples, which rows keep whole."""

import csv
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import example, packing, pipeline, prepare, show, tokenizer
from data.chat import encoder

BYTES = tokenizer.Config(kind="bytes", vocab_size=259)
RNG = random.Random(0)
ROWS = [
  {
    "instruction": "say " + "x" * RNG.randint(1, 30),
    "input": "" if i % 2 else "é🙂",
    "output": "y" * RNG.randint(1, 40),
  }
  for i in range(80)
]


def as_jsonl(path):
  path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_csv(path):
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, ROWS[0])
    writer.writeheader()
    writer.writerows(ROWS)


def as_parquet(path):
  pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)


def as_arrow(path):
  table = pa.Table.from_pylist(ROWS)
  with pa.ipc.new_file(path, table.schema) as file:
    file.write_table(table, max_chunksize=11)


WRITERS = {
  "jsonl": as_jsonl,
  "csv": as_csv,
  "parquet": as_parquet,
  "arrow": as_arrow,
}


def config(path, **more):
  return prepare.Config(
    sources=(str(path),),
    formats=("instruction",),
    chat=encoder.Config(template="zephyr"),
    **{"heldout_fraction": 0.2, "shard_bytes": 4_000, **more},
  )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  folder = tmp_path_factory.mktemp("examples")
  as_jsonl(folder / "rows.jsonl")
  return prepare.prepare(config(folder / "rows.jsonl"), BYTES, folder / "store")


def expected():
  made = encoder.Encoder(
    encoder.Config(template="zephyr"), tokenizer.train(BYTES, [])
  )
  return [made.example(row, "instruction") for row in ROWS]


def corpora(store):
  return store.train + store.heldout


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same_examples(kind, tmp_path):
  path = tmp_path / f"rows.{kind}"
  WRITERS[kind](path)
  made = prepare.prepare(config(path), BYTES, tmp_path / "store")
  made.verify()
  wanted = expected()
  n = 0
  for corpus in corpora(made):
    for i in range(len(corpus)):
      row = int(corpus.name_of(i).rpartition(":")[2])
      row -= {"jsonl": 1, "csv": 2}.get(kind, 0)
      for ours, theirs in zip(corpus[i], wanted[row], strict=True):
        np.testing.assert_array_equal(ours, theirs)
      n += 1
  assert n == len(ROWS)


def test_columns_of_another_name_are_ours(tmp_path, store):
  renamed = [
    {"question": r["instruction"], "context": r["input"], "answer": r["output"]}
    for r in ROWS
  ]
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in renamed))
  names = {"instruction": "question", "input": "context", "output": "answer"}
  chat = encoder.Config(template="zephyr", columns=names)
  made = prepare.prepare(
    prepare.Config(
      sources=(str(path),),
      formats=("instruction",),
      chat=chat,
      heldout_fraction=0.2,
    ),
    BYTES,
    tmp_path / "store",
  )
  one, other = (
    sorted(c[i].tokens.tobytes() for c in corpora(s) for i in range(len(c)))
    for s in (made, store)
  )
  assert one == other


def test_what_is_no_example_is_listed_with_its_place(tmp_path):
  as_jsonl(tmp_path / "rows.jsonl")
  with (tmp_path / "rows.jsonl").open("a") as file:
    file.write(json.dumps({"instruction": "x", "output": ""}) + "\n")
  made = prepare.prepare(
    config(tmp_path / "rows.jsonl", max_bad_fraction=0.1),
    BYTES,
    tmp_path / "store",
  )
  (entry,) = made.manifest["sources"]
  assert entry["bad"] == {"format": 1}
  (line,) = (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()
  assert json.loads(line)["where"].endswith("rows.jsonl:81")
  assert "message 2 is empty" in json.loads(line)["reason"]


def segments(batches):
  """The segments of batches, as the bytes of their arrays."""
  for batch in batches:
    for row in range(len(batch.tokens)):
      for segment in range(1, int(batch.segment_ids[row].max()) + 1):
        at = batch.segment_ids[row] == segment
        assert (batch.positions[row][at] == np.arange(at.sum())).all()
        arrays = batch.tokens, batch.targets, batch.weights.astype(np.int32)
        yield tuple(x[row][at].tobytes() for x in arrays)


def as_bytes(made):
  return tuple(x.astype(np.int32).tobytes() for x in made)


def test_rows_keep_every_example_whole_and_once_an_epoch(store):
  shape = pipeline.Config(size=4, length=256, packing="whole")
  stream = pipeline.train_batches(shape, store.train, (), range(4), 0)
  (corpus,) = store.train
  batches = [next(stream) for _ in range(30)]
  found = list(segments(batches))
  wanted = [as_bytes(corpus[i]) for i in range(len(corpus))]
  assert {*found} == {*wanted}
  n_epochs = len(found) / len(wanted)
  for one in wanted:
    assert abs(found.count(one) - n_epochs) <= 2
  used = np.mean([(batch.segment_ids > 0).mean() for batch in batches])
  assert used > 0.9


def test_rows_resume_and_are_the_same_on_every_number_of_hosts(store):
  shape = pipeline.Config(size=4, length=128, packing="whole", n_interleaved=2)

  def stream(rows):
    return pipeline.train_batches(shape, store.train, (), rows, 0)

  whole, parts = stream(range(4)), [stream(range(2)), stream(range(2, 4))]
  for step in range(12):
    if step == 5:
      states = [json.loads(json.dumps(part.state())) for part in parts]
      named = whole.documents(states[0] | states[1])
      parts = [stream([3, 1]), stream([2, 0])]
      for part in parts:
        part.restore(states[0] | states[1])
    batch = next(whole)
    halves = [next(part) for part in parts]
    order = [0, 1, 2, 3] if step < 5 else [3, 1, 2, 0]
    tokens = np.concatenate([half.tokens for half in halves])
    np.testing.assert_array_equal(batch.tokens[order], tokens)
    if step == 5:
      for row, origins in named.items():
        assert len(origins) == batch.segment_ids[row].max()


def test_what_is_longer_than_a_row_is_cut_and_counted(store):
  shape = pipeline.Config(size=2, length=48, packing="whole")
  stream = pipeline.train_batches(shape, store.train, (), range(2), 0)
  (corpus,) = store.train
  lengths = [len(corpus[i].tokens) for i in range(len(corpus))]
  n_long = sum(n > 48 for n in lengths)
  assert 0 < n_long < len(lengths)
  assert pipeline.n_cut(store.train, pipeline.Config(length=48)) == (
    n_long,
    len(lengths),
  )
  starts = {
    tuple(x[:48].tobytes() for x in corpus[i]) for i in range(len(corpus))
  }
  found = {*segments(next(stream) for _ in range(60))}
  assert found == starts


def test_plain_text_among_examples_loses_nothing():
  """It goes in pieces of a row; a finite sequence ends in padding."""
  text = np.arange(3, 203, dtype=np.int32)
  short = example.shifted(np.arange(20), np.ones(20, np.int32))
  packer = packing.WholePacker([short, text, short])
  batch = packing.blank(8, 64)
  for row in range(8):
    packer.fill(batch, row)
  assert packer.exhausted
  learnt = batch.targets[batch.weights > 0]
  whole = [*short.targets, *text, packing.ENDS[1], *short.targets]
  assert sorted(learnt) == sorted(whole)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_evaluation_sees_each_example_whole_for_every_batch(store, size):
  batches = pipeline.eval_batches(store.heldout, size, 128, range(size))
  (corpus,) = store.heldout
  wanted = [as_bytes(corpus[i]) for i in range(len(corpus))]
  assert list(segments(batches)) == wanted


def test_examples_are_not_parted_at_the_ends_of_rows(store):
  with pytest.raises(ValueError, match="batch.packing='whole'"):
    pipeline.train_batches(pipeline.Config(), store.train, (), range(4), 0)


def test_what_is_shown_says_what_is_learnt(store):
  shape = pipeline.Config(size=1, length=128, packing="whole")
  batch = next(pipeline.train_batches(shape, store.train, (), range(1), 0))
  text = "".join(show.lines(batch, 0, store.tokenizer, 10_000, False))
  assert "<s>~<~|~u~s~e~r~|~>" in text.replace(" ", "")
  first = int(np.flatnonzero(batch.weights[0])[0])
  n = int(batch.weights[0][first:].argmin())
  assert text.count("</s>") >= 2 and "|".join("y" * (n - 1)) in text
