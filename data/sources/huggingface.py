"""Folders that `datasets.save_to_disk` left, read without `datasets`.

A Dataset is Arrow files that `state.json` lists; a DatasetDict is a folder of
such folders, one a split, that `dataset_dict.json` lists. (A repository of the
hub, with parquet or JSON lines in it, is an ordinary folder: "folder#train"
takes the files that have the word in their names.)
"""

import json

from etils import epath

from data.sources.record import File
from data.sources.tfds import INFO, choose

STATE, SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: epath.Path) -> bool:
  """Whether a folder is of this kind."""
  if (folder / SPLITS).exists():
    return True
  return (folder / STATE).exists() and (folder / INFO).exists()


def saved_files(folder: epath.Path, split: str) -> list[File]:
  """Lists the Arrow files of a split.

  Raises:
    ValueError: no such split, a file that is missing, or rows in an order that
      lies in another file.
  """
  if (folder / SPLITS).exists():
    names = json.loads((folder / SPLITS).read_text())["splits"]
    folder = folder / choose(folder, split, names)
  elif split:
    raise ValueError(
      f"data.sources: {folder} is one data set without splits: leave out"
      f" '#{split}'."
    )
  state = json.loads((folder / STATE).read_text())
  if state.get("_indices_data_files"):
    raise ValueError(
      f"data.sources: {folder} has its rows in an order of their own (shuffled"
      " or selected): call flatten_indices() before save_to_disk()."
    )
  found = []
  for entry in state["_data_files"]:
    path = folder / entry["filename"]
    if not path.exists():
      raise ValueError(
        f"data.sources: {path} is missing, which {STATE} lists. Fetch it, or"
        " save the data set again."
      )
    found.append(File(entry["filename"], path))
  return found
