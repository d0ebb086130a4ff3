"""Word vectors: word2vec, fastText, GloVe; who is near whom comes last.

    python -m train.embed --config=configs/word2vec.py --workdir=runs/words

Leaves vectors.txt, as word2vec writes it, and with subwords buckets.npy, the
rows of all n-grams. `--config=configs/word2vec.py:preset=glove` and the like
are other models.
"""

import json
from collections.abc import Callable
from typing import Any

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
  state, metrics = rows.fit(config.train, *_task(config, corpus, say), say)
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


def _task(
  config: door.Config, corpus: words.Corpus, say: Callable[[str], None]
) -> tuple[Any, ...]:
  """Tables, arrays that stay, objective, blocks, and what an epoch reads."""
  model, key = config.model, jax.random.key(config.train.seed)
  if config.names["model"] == "word2vec":
    return (
      *word2vec.begin(model, corpus, key),
      word2vec.objective(model.n_negatives),
      word2vec.blocks(model, corpus, config.train),
      len(corpus.ids),
    )
  counts = cooccurrence.count(corpus, model.window, model.max_pairs)
  say(f"{len(counts.rows):,} pairs of words that meet")
  fixed = {"largest": model.largest, "power": model.power}
  state = glove.begin(model, len(corpus.words), key)
  blocks = glove.blocks(counts, config.train)
  return state, fixed, glove.objective, blocks, len(counts.rows)


def _save(
  workdir: epath.Path,
  config: door.Config,
  found: vectors.Vectors,
  metrics: dict[str, float],
) -> None:
  workdir.mkdir(parents=True, exist_ok=True)
  vectors.write(workdir / "vectors.txt", found)
  if found.buckets is not None:
    with (workdir / "buckets.npy").open("wb") as file:
      np.save(file, found.buckets, allow_pickle=False)
  door.write(workdir / "config.json", config.to_dict())
  said = card.make(0, None, None, metrics)
  durable.write_text(workdir / "card.json", f"{json.dumps(said)}\n")
  manifest.seal(workdir)


if __name__ == "__main__":
  door.run(main, SECTIONS)
