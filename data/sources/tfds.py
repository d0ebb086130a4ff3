"""Folders that TensorFlow Datasets prepared, read without TensorFlow.

`dataset_info.json` names the splits, their files and how many records each file
has; records are tf.train.Examples, in ArrayRecord or TFRecord files.
"""

import json
from typing import Any

from etils import epath

from data.sources.record import File

INFO, FEATURES = "dataset_info.json", "features.json"
FORMATS = ("array_record", "tfrecord")


def is_prepared(folder: epath.Path) -> bool:
  """Whether a folder is of this kind: DATA_DIR/NAME/VERSION."""
  return (folder / INFO).exists() and (folder / FEATURES).exists()


def prepared_files(folder: epath.Path, split: str) -> list[File]:
  """Lists the shards of a split, with the number of their records.

  Raises:
    ValueError: no such split, another format, or a shard that is missing.
  """
  info = json.loads((folder / INFO).read_text())
  kind = info.get("fileFormat", "tfrecord")
  if kind not in FORMATS:
    raise ValueError(
      f"data.sources: {folder} was prepared as {kind}, and {FORMATS} can be"
      ' read. Prepare it with file_format="array_record".'
    )
  splits = {entry["name"]: entry for entry in info.get("splits", [])}
  name = choose(folder, split, list(splits))
  counts = [int(n) for n in splits[name]["shardLengths"]]
  shards = []
  for i, n_records in enumerate(counts):
    shard = _shard(info, splits[name], i, len(counts))
    if not (folder / shard).exists():
      raise ValueError(
        f"data.sources: {folder / shard} is missing; {INFO} says that it has"
        f" {n_records} records. Fetch it, or prepare the data set again."
      )
    shards.append(File(shard, folder / shard, n_records))
  return shards


def _shard(
  info: dict[str, Any], split: dict[str, Any], i: int, n_shards: int
) -> str:
  template = split.get("filepathTemplate")
  template = template or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
  return template.format(
    DATASET=info["name"],
    SPLIT=split["name"],
    FILEFORMAT=info.get("fileFormat", "tfrecord"),
    SHARD_INDEX=f"{i:05d}",
    NUM_SHARDS=f"{n_shards:05d}",
    SHARD_X_OF_Y=f"{i:05d}-of-{n_shards:05d}",
  )


def choose(folder: epath.Path, split: str, names: list[str]) -> str:
  """The split that is meant: the one that is named, or the only one.

  Raises:
    ValueError: which of several is open, or there is none of that name.
  """
  if not split and len(names) == 1:
    return names[0]
  if split not in names:
    wanted = f"has no split {split!r}" if split else "has several splits"
    raise ValueError(
      f"data.sources: {folder} {wanted}: name one of {', '.join(names)}, as in"
      f" '{folder}#{names[0] if names else 'train'}'."
    )
  return split
