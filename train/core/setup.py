"""What every run on text begins with: devices, data, tokenizer, model."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from configs import door
from data import packing, pipeline, prepare, store
from data import tokenizer as tokenizers
from data.batch import Batch
from models import attention_kernels, checkpoint, families, flops, manifest
from sharding import context, hosts, mesh, rules
from sharding.rules import Layout
from train.core import conflicts

# What a run cannot change on the way: its parameters and its place in the data
# would mean something else.
_FIXED = (
  "model", "tokenizer", "data", "batch", "adapter",
  "base.trained", "base.weights", "base.double",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setup:
  """The parts that do not change while a run goes on."""

  layout: Layout
  model: families.Config
  store: store.Store
  batch: pipeline.Config
  kernel: str  # of the attention

  def __str__(self) -> str:
    kernel, layout = self.kernel, self.layout
    if context.size(layout) > 1:
      kernel += f" ({layout.exchange}, {layout.order})"
    return (
      f"{families.name(self.model)} with {flops.n_params(self.model) / 1e6:,.1f}"
      f" M parameters in {self.model.dtype} on {jax.device_count()} x "
      f"{jax.devices()[0].device_kind} ({mesh.describe(self.layout.mesh)}); "
      f"{self.batch.size * self.batch.length:,} tokens a step; attention: "
      f"{kernel}"
    )

  @property
  def rows(self) -> list[int]:
    """Rows of the global batch that this host's devices hold, in order."""
    shape = (self.batch.size, self.batch.length)
    places = self.layout.batch.addressable_devices_indices_map(shape)
    starts = {
      index[0].indices(self.batch.size)[:2] for index in places.values()
    }
    return [row for start, stop in sorted(starts) for row in range(start, stop)]

  def put(self, batch: Batch) -> Batch:
    """This host's rows -> the global batch, on the devices.

    Columns go into the order of the layout; a host may hold some of them only.
    """
    rows, layout = self.rows, self.layout
    if batch.source is not None:
      batch = packing.begun(batch, self.model.start_id)

    def place(x):
      shape = (self.batch.size, x.shape[1])
      x = x[:, context.columns(layout, x.shape[1])]

      def part(index):
        start, stop, _ = index[0].indices(self.batch.size)
        first = rows.index(start)
        return x[first : first + stop - start, index[1]]

      return jax.make_array_from_callback(shape, layout.batch, part)

    return jax.tree.map(place, batch)

  def batches(
    self, weights: Sequence[float], seed: int
  ) -> pipeline.TrainBatches:
    """An endless iterator of this host's rows."""
    noise = self.batch.noise_of(self.store.tokenizer)
    return pipeline.train_batches(
      self.batch, self.store.train, weights, self.rows, seed, noise
    )

  def heldout(self) -> Iterator[Batch]:
    """The held-out documents, once, as global batches on the devices."""
    config, corpora = self.batch, self.store.heldout
    noise = config.noise_of(self.store.tokenizer)
    if noise or config.source_length:
      batches = pipeline.paired_eval_batches(config, corpora, self.rows, noise)
    else:
      batches = pipeline.eval_batches(
        corpora, config.size, config.length, self.rows
      )
    for batch in batches:
      yield self.put(batch)


def abstract_batch(batch: pipeline.Config, layout: Layout) -> Batch:
  """Shapes, types and places of a global batch."""

  def field(row):
    shape = (batch.size, row.shape[1])
    return jax.ShapeDtypeStruct(shape, row.dtype, sharding=layout.batch)

  return jax.tree.map(field, batch.blank(1))


def begin(config: door.Config, workdir: epath.Path) -> Setup:
  """Joins the hosts, builds the mesh, prepares or opens the store.

  Args:
    config: resolved, with the sections that evaluation has.
    workdir: of the run.

  Raises:
    ValueError: settings that do not fit each other or this machine.
  """
  hosts.initialize()
  conflicts.check(config, jax.device_count())
  layout = rules.make(mesh.make(config.mesh), *config.mesh.settings)
  folder = prepare.folder(config.data, workdir)
  if jax.process_index() == 0:
    prepare.prepare(config.data, config.tokenizer, folder)
  multihost_utils.sync_global_devices("store")
  opened = store.Store(folder)
  if opened.tokenizer.vocab_size > config.model.vocab_size:
    raise ValueError(
      f"the tokenizer of {folder} has {opened.tokenizer.vocab_size} ids and the "
      f"model vocab_size={config.model.vocab_size}: ids beyond would be read as "
      "the last one. Raise model.vocab_size, or train a smaller tokenizer."
    )
  with layout.use():
    kernel = attention_kernels.choose(
      length=config.batch.length,
      d_head=config.model.d_head,
      dtype=config.model.dtype,
      extras=_extras(config),
    )
  return Setup(layout, config.model, opened, config.batch, kernel)


def _extras(config: door.Config) -> tuple[str, ...]:
  """What the attention of a run has beyond that of plain text."""
  found = list(attention_kernels.extras_of(config.model))
  if config.batch.sees_sources:
    found.append("prefix")
  if config.batch.source_length not in (0, config.batch.length):
    found.append("another text")
  return tuple(found)


def settle(
  config: door.Config,
  workdir: epath.Path,
  sections: dict[str, Any],
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Writes WORKDIR/config.json, once it fits the checkpoint to go on from.

  That one's config.json is the truth, whatever lies in the workdir.

  Returns:
    The resolved config as plain data.

  Raises:
    ValueError: the run has checkpoints of another model or of other data.
  """
  path, settings = workdir / "config.json", config.to_dict()
  for step in reversed(checkpoint.steps(workdir)):
    kept = workdir / "checkpoints" / str(step)
    if manifest.verify(kept, part="config.json") is None:
      door.agree(config, kept, sections, _FIXED, say)
      break
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    door.write(path, settings)
  return settings


def check_tokenizer(path: epath.Path, opened: store.Store) -> None:
  """Checks that a checkpoint reads the ids of a store as they were meant.

  Raises:
    ValueError: they come from two tokenizers.
  """
  own = tokenizers.load(path).fingerprint
  if own != opened.tokenizer.fingerprint:
    raise ValueError(
      f"{path} was trained with the tokenizer {own[:12]}, and the store "
      f"{opened.folder} was made by {opened.tokenizer.fingerprint[:12]}: its "
      f'ids mean other pieces. Prepare it with tokenizer.kind="saved" and '
      f"tokenizer.path={str(path)!r}."
    )
