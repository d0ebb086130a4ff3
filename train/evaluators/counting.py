"""What a table of counts makes of the held-out text, in bits per byte."""

import math
from collections.abc import Sequence

from data import store
from data.tokenizer import Tokenizer
from models.classic import ngram


def bits_per_byte(
  train: Sequence[store.Corpus],
  heldout: Sequence[store.Corpus],
  tokenizer: Tokenizer,
  n: int,
) -> dict[str, float]:
  """N-grams of the documents that are trained on, asked for the others."""
  model = ngram.fit(
    (corpus[i] for corpus in train for i in range(len(corpus))),
    n,
    tokenizer.vocab_size,
    bos_id=tokenizer.bos_id,
    eos_id=tokenizer.eos_id,
  )
  found = [
    float(ngram.log2_likelihood(model, corpus[i]).sum())
    for corpus in heldout
    for i in range(len(corpus))
  ]
  n_bytes = sum(corpus.n_bytes for corpus in heldout)
  return {"ngram_bits_per_byte": -math.fsum(found) / max(n_bytes, 1)}
