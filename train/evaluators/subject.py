"""Who is asked: a checkpoint on a mesh, and how much of it is asked at once."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from data import tokenizer as tokenizers
from data.tokenizer import Tokenizer
from models import checkpoint, decode, families, prefix
from sharding import context, mesh, rules
from sharding.rules import Layout


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model that reads and writes."""

  model: families.Config
  params: Any
  tokenizer: Tokenizer
  layout: Layout
  batch_tokens: int  # of one batch, padding included

  def __post_init__(self):
    if self.layout.n_stages > 1:
      raise ValueError(
        f"mesh.stage={self.layout.n_stages}: tasks are measured without stages. "
        "Give mesh.stage=1; a checkpoint loads on any mesh."
      )
    if prefix.length(self.params) and context.size(self.layout) > 1:
      raise ValueError(
        f"mesh.context={context.size(self.layout)} splits a text, and a prefix "
        "lies before all of it: give mesh.context=1."
      )
    if jax.process_count() > 1:
      raise ValueError(
        f"{jax.process_count()} processes: tasks are measured by one. Start it "
        "on one host; a checkpoint loads on any mesh."
      )

  @property
  def longest(self) -> int:
    """Tokens of the longest row that the model reads, behind a prefix."""
    return self.model.max_length - prefix.length(self.params)

  def length(self, n_tokens: int) -> int:
    """What a row of so many tokens is padded to, so that few are compiled."""
    n_pieces = 2 * context.size(self.layout)
    size = decode.bucket(n_tokens)
    if self.longest % n_pieces == 0 and self.longest >= n_tokens:
      size = min(size, self.longest)
    return -(-size // n_pieces) * n_pieces

  def n_rows(self, length: int) -> int:
    """Rows of a batch of that length: at least one on each shard."""
    n_shards = self.layout.n_batch_shards
    return n_shards * max(1, self.batch_tokens // (length * n_shards))

  def put(self, rows: np.ndarray) -> jax.Array:
    """[B, T] on the devices, its columns in the order of the layout."""
    columns = context.columns(self.layout, rows.shape[1])
    return jax.device_put(rows[:, columns], self.layout.batch)


def load(
  path: epath.Path, where: mesh.Config, batch_tokens: int = 4096
) -> Subject:
  """Loads a checkpoint, or the newest of a run.

  Args:
    path: of it.
    where: the mesh.
    batch_tokens: of one batch.

  Raises:
    ValueError: as `checkpoint.load`; a mesh that does not fit; a tokenizer with
      more ids than the model.
  """
  path = checkpoint.find(path)
  layout = rules.make(mesh.make(where), *where.settings)
  model, params = checkpoint.load(path, layout)
  tokenizer = tokenizers.load(path)
  if tokenizer.vocab_size > model.vocab_size:
    raise ValueError(
      f"{path}: the tokenizer has {tokenizer.vocab_size} ids, and the model "
      f"vocab_size={model.vocab_size}: they do not belong together."
    )
  return Subject(model, params, tokenizer, layout, batch_tokens)


def by_length(
  subject: Subject, n_tokens: Sequence[int]
) -> list[tuple[int, list[int]]]:
  """Parts requests into batches of one padded length each, the longest first.

  What is too large fails at once, and the same requests make the same batches.

  Returns:
    (length, which requests) of every batch.
  """
  order = sorted(range(len(n_tokens)), key=lambda i: (-n_tokens[i], i))
  lengths: dict[int, list[int]] = {}
  for i in order:
    lengths.setdefault(subject.length(n_tokens[i]), []).append(i)
  return [
    (length, which[start : start + subject.n_rows(length)])
    for length, which in lengths.items()
    for start in range(0, len(which), subject.n_rows(length))
  ]
