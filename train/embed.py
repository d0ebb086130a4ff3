"""Word vectors: word2vec, fastText, GloVe; who is near whom comes last.

    python -m train.embed --config=configs/word2vec.py --workdir=runs/words

Leaves vectors.txt, as word2vec writes it, and with subwords buckets.npy, the
rows of all n-grams. `--config=configs/word2vec.py:preset=glove` and the like
are other models.
"""

import time
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath

from configs import door
from data import cooccurrence, words
from models import card, durable, manifest
from models.classic import vectors
from train.core import rows, track
from train.objectives import glove, word2vec

SECTIONS = {
  "model": {"word2vec": word2vec.Config, "glove": glove.Config},
  "data": words.Config,
  "train": rows.Config,
}
N_ASKED, N_NEAR = 8, 6  # words whose neighbours are printed, and how many


def main(config: door.Config, workdir: epath.Path) -> None:
  """Reads, trains, writes, and asks a few words for their neighbours."""
  if (workdir / manifest.NAME).exists():
    raise ValueError(
      f"{workdir} already holds word vectors: choose another --workdir."
    )
  say = track.terminal().say
  corpus = words.read(config.data)
  say(
    f"{len(corpus.ids):,} words of {len(corpus.words):,} kinds in "
    f"{int(corpus.texts[-1]) + 1:,} texts"
  )
  state, fixed, objective, blocks = _task(config, corpus, say)
  state, metrics = _train(config.train, state, fixed, objective, blocks, say)
  if config.names["model"] == "glove":
    found = glove.vectors(corpus, state)
  else:
    found = word2vec.vectors(config.model, corpus, state)
  _save(workdir, config, found, metrics)
  for word in found.words[:: max(len(found.words) // (4 * N_ASKED), 1)][
    :N_ASKED
  ]:
    near = found.nearest(found.of(word), N_NEAR, without=(word,))
    say(f"  {word:<16} {'  '.join(f'{w} {c:.2f}' for w, c in near)}")


def _task(config: door.Config, corpus: words.Corpus, say):
  """What is trained on what: tables, arrays that stay, objective, blocks."""
  model, key = config.model, jax.random.key(config.train.seed)
  if config.names["model"] == "word2vec":
    return (
      *word2vec.begin(model, corpus, key),
      word2vec.objective(model.n_negatives),
      word2vec.blocks(model, corpus, config.train),
    )
  counts = cooccurrence.count(corpus, model.window, model.max_pairs)
  say(f"{len(counts.rows):,} pairs of words that meet")
  fixed = {"largest": model.largest, "power": model.power}
  state = glove.begin(model, len(corpus.words), key)
  return state, fixed, glove.objective, glove.blocks(counts, config.train)


def _train(
  config: rows.Config,
  state: rows.State,
  fixed,
  objective,
  blocks: Iterator,
  say,
) -> tuple[rows.State, dict[str, float]]:
  """To the last block; how fast, and what the loss of the last part was."""
  key, began = jax.random.key(config.seed + 1), time.monotonic()
  told, n_read, loss, weight = began, 0, 0.0, 0.0
  metrics: dict[str, float] = {}
  for i, (done, n_more, block) in enumerate(blocks):
    lr = np.float32(config.lr * max(1.0 - done, 1e-4))
    state, (more, n) = rows.run(
      objective, state, fixed, block, lr, jax.random.fold_in(key, i)
    )
    n_read, loss, weight = n_read + n_more, loss + more, weight + n
    now = time.monotonic()
    if now - told > config.log_every_seconds or done == 1.0:
      rate = n_read / (now - began)
      metrics = {"loss": float(loss) / max(float(weight), 1.0), "rate": rate}
      left = (now - began) * (1 - done) / done
      say(
        f"  {done:4.0%}  loss {metrics['loss']:.4f}  {rate:,.0f} a second  "
        f"left {left:,.0f} s"
      )
      told, loss, weight = now, 0.0, 0.0
  return state, metrics


def _save(
  workdir, config: door.Config, found: vectors.Vectors, metrics
) -> None:
  workdir.mkdir(parents=True, exist_ok=True)
  vectors.write(workdir / "vectors.txt", found)
  if found.buckets is not None:
    with (workdir / "buckets.npy").open("wb") as file:
      np.save(file, found.buckets, allow_pickle=False)
  door.write(workdir / "config.json", config.to_dict())
  said = card.make(0, None, metrics)
  durable.write_text(workdir / "card.json", f"{door.json.dumps(said)}\n")
  manifest.seal(workdir)


if __name__ == "__main__":
  door.run(main, SECTIONS)
