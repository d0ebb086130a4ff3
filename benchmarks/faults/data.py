"""Cuts streams of batches and preparations of text: is anything lost or twice?

    python -m benchmarks.faults.data --n 20

A stream that shuffles, mixes, packs and comes through several epochs is cut at
n points on each of 1 to 8 hosts, and goes on on another number of them; one
more is cut at all the points, one after the other. Every one must have the same
SHA-256 as the stream that nobody cut, and each row must begin the documents of
the shuffle in their order, by their names: none lost, none repeated.

A preparation (two sources with dirt and leaks, a tokenizer, many shards) is
ended by SIGKILL at n random moments, some of them twice, some while another
process waits for it; started again it must end at the same bytes.

The last line is JSON: hosts, points, streams, digests (must be 1), lost,
repeated (must be 0); kills, prepared, identical (must be all of them).
"""

import collections
import hashlib
import itertools
import json
import multiprocessing
import pathlib
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from benchmarks.faults import dose
from data import decontaminate, mixture, pipeline, prepare, store
from data import tokenizer as tokenizers
from data.batch import Batch

N_HOSTS = 8
N_STEPS = 40  # of a stream: 2 epochs of one source, 7 of the other
SEED = 0
WEIGHTS = (0.7, 0.3)
BATCH = pipeline.Config(size=8, length=128, n_interleaved=3)
# (row, turn of its packers) -> documents that began there, in order.
Begun = dict[tuple[int, int], list[pipeline.Origin]]
FIELDS = ("tokens", "targets", "weights", "segment_ids", "positions")
LEAK = "what is the name of the only river that flows north and south"
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])


def hurt(n: int, folder: epath.Path) -> dict[str, Any]:
  """Cuts n times of each; returns the figures."""
  config = write_text(folder / "text")
  prepare_store(config, str(folder / "whole"))
  opened = store.Store(folder / "whole")
  return streams(n, opened) | kills(n, config, folder)


# Streams ---------------------------------------------------------------------


def streams(n: int, opened: store.Store) -> dict[str, Any]:
  """Cuts the stream at n points on each number of hosts."""
  rng = random.Random(SEED)
  points = [rng.randrange(N_STEPS + 1) for _ in range(n)]
  digests, lost, repeated = {digest(run(opened, [(N_STEPS, 1)])[0])}, 0, 0
  plans = [
    [(point, n_hosts), (N_STEPS, 1 + (n_hosts + i) % N_HOSTS)]
    for n_hosts in range(1, N_HOSTS + 1)
    for i, point in enumerate(points)
  ]
  plans.append(
    [(p, rng.randint(1, N_HOSTS)) for p in (*sorted(points), N_STEPS)]
  )
  for plan in plans:
    batches, begun = run(opened, plan)
    digests.add(digest(batches))
    missing, extra = compare(opened, begun)
    lost, repeated = lost + missing, repeated + extra
  return {
    "hosts": N_HOSTS,
    "points": n,
    "streams": len(plans),
    "digests": len(digests),
    "lost": lost,
    "repeated": repeated,
  }


def run(
  opened: store.Store, plan: Sequence[tuple[int, int]]
) -> tuple[list[Batch], Begun]:
  """Runs to each step of a plan on its number of hosts, as one life.

  Returns:
    The global batches, and the documents that began in them.
  """
  state, made = None, []
  begun: Begun = collections.defaultdict(list)
  for stop, n_hosts in plan:
    rows = np.array_split(np.arange(BATCH.size), n_hosts)
    hosts = [
      pipeline.train_batches(BATCH, opened.train, WEIGHTS, part.tolist(), SEED)
      for part in rows
    ]
    for host in hosts if state else ():
      host.restore(state)
    for step in range(len(made), stop):
      named = [host.documents(host.state()) for host in hosts]
      parts = [next(host) for host in hosts]
      made.append(
        Batch(*(np.concatenate([getattr(p, f) for p in parts]) for f in FIELDS))
      )
      for row, origins in itertools.chain(*(part.items() for part in named)):
        place = row, step % BATCH.n_interleaved
        begun[place] += first_parts(made[-1], row, origins)
    # What the checkpoints of all hosts say, united as JSON.
    states = [json.loads(json.dumps(host.state())) for host in hosts]
    state = {key: value for part in states for key, value in part.items()}
  return made, begun


def first_parts(
  batch: Batch, row: int, origins: list[pipeline.Origin]
) -> list[pipeline.Origin]:
  """Those of a row's documents that begin in it."""
  firsts = batch.tokens[row][batch.positions[row] == 0]
  return [
    origin
    for origin, token in zip(origins, firsts, strict=True)
    if token == tokenizers.BOS_ID
  ]


def compare(opened: store.Store, begun: Begun) -> tuple[int, int]:
  """Counts documents lost and repeated, against the shuffle itself."""
  order = mixture.shuffled(opened.train, WEIGHTS, SEED)
  lost = repeated = 0
  for (row, turn), found in begun.items():
    expected = []
    for i in range(len(found)):
      index = row + BATCH.size * (turn + BATCH.n_interleaved * i)
      part, place = order.place(index)
      corpus = opened.train[part]
      name = corpus.name_of(place)
      expected.append(pipeline.Origin(corpus.name, place, name))
    wanted, had = collections.Counter(expected), collections.Counter(found)
    lost += (wanted - had).total()
    repeated += (had - wanted).total()
  return lost, repeated


def digest(batches: Sequence[Batch]) -> str:
  """SHA-256 of all that the batches hold."""
  found = hashlib.sha256()
  for batch, field in itertools.product(batches, FIELDS):
    array = np.ascontiguousarray(getattr(batch, field))
    found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
  return found.hexdigest()


# Preparations ----------------------------------------------------------------


def kills(n: int, config: prepare.Config, folder: epath.Path) -> dict[str, Any]:
  """Kills preparations at n random moments; counts those that end the same."""
  rng = random.Random(SEED)
  truth = content(folder / "whole")
  for name in ("first", "timed"):  # the first one waits for the imports
    started = time.monotonic()
    _start(config, folder / name / "store").join()
    seconds = time.monotonic() - started
  n_kills = n_prepared = identical = 0
  while n_kills < n:
    out = folder / f"killed-{n_prepared}" / "store"
    for _ in range(min(rng.choice([1, 1, 2, 4]), n - n_kills)):
      processes = [_start(config, out) for _ in range(rng.choice([1, 1, 2]))]
      time.sleep(rng.uniform(0, seconds))
      victim = rng.choice(processes)
      n_kills += victim.is_alive()
      victim.kill()
      for process in processes:
        if process is not victim:
          process.kill() if rng.random() < 0.5 else process.join()
        process.join()
    last = _start(config, out)
    last.join()
    left = [path.name for path in out.parent.iterdir()]
    n_prepared += 1
    identical += (last.exitcode, left, content(out)) == (0, ["store"], truth)
  return {"kills": n_kills, "prepared": n_prepared, "identical": identical}


def _start(
  config: prepare.Config, out: epath.Path
) -> multiprocessing.process.BaseProcess:
  process = _SERVER.Process(target=prepare_store, args=(config, str(out)))
  process.start()
  return process


def prepare_store(config: prepare.Config, out: str) -> None:
  """Prepares, as a process of its own."""
  tokenizer = tokenizers.Config(
    kind="sentencepiece_bpe", vocab_size=320, sample_bytes=100_000
  )
  prepare.prepare(config, tokenizer, out)


def content(folder: epath.Path) -> dict[str, str]:
  """Every file of a folder by its digest."""
  root = pathlib.Path(folder)
  return {
    path.relative_to(root).as_posix(): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in sorted(root.rglob("*"))
    if path.is_file()
  }


def write_text(folder: epath.Path) -> prepare.Config:
  """Writes two sources with dirt and leaks in them, and what they leak."""
  rng = random.Random(SEED)
  folder.mkdir(parents=True)
  words = [
    "".join(rng.choice("abcdefghijklm") for _ in range(rng.randint(2, 8)))
    for _ in range(400)
  ]

  def text() -> str:
    return " ".join(rng.choice(words) for _ in range(rng.randint(5, 40)))

  lines = [json.dumps({"text": text()}) for _ in range(300)]
  lines[100:100] = ["{", json.dumps({"text": f"{text()} {LEAK.title()}?"})]
  (folder / "a.jsonl").write_text("\n".join(lines))
  (folder / "b").mkdir()
  for i in range(40):
    (folder / "b" / f"{i:02}.txt").write_text(text())
  (folder / "b" / "20.txt").write_bytes(b"\xff")
  (folder / "bench.jsonl").write_text(json.dumps({"text": LEAK}))
  return prepare.Config(
    sources=(f"{folder}/a.jsonl", f"{folder}/b"),
    heldout_fraction=0.1,
    shard_bytes=2_000,
    max_bad_fraction=0.1,
    decontaminate=decontaminate.Config(sources=(f"{folder}/bench.jsonl",)),
  )


def is_kept(found: dict[str, Any]) -> bool:
  """Whether nothing was lost, repeated or other than it should be."""
  return (
    found["digests"] == 1
    and found["lost"] == found["repeated"] == 0
    and found["identical"] == found["prepared"] > 0
  )


if __name__ == "__main__":
  dose.run(hurt, n=20, is_kept=is_kept)
