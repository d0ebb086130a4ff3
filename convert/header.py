"""What every file of tensors has to keep, whatever its format."""

import os
from collections.abc import Iterable, Sequence


def lie_end_to_end(
  file: os.PathLike,
  spans: Sequence[tuple[str, int, int]],
  *,
  first: int,
  size: int,
  alignment: int = 1,
) -> None:
  """Sees that tensors fill a file: no gaps, no overlaps, nothing behind them.

  Args:
    file: for messages.
    spans: name, first byte and number of bytes of each, in order.
    first: byte of the first.
    size: of the file.
    alignment: gaps up to the next multiple of it, counted from `first`, are.

  Raises:
    ValueError: names the first tensor that does not.
  """
  stop = first
  for name, start, n_bytes in spans:
    begin = stop + -(stop - first) % alignment
    if start != begin:
      raise ValueError(
        f"{file} has {name} at byte {start}, where {begin} should be: its "
        "header is damaged."
      )
    stop = start + n_bytes
    if stop > size:
      raise ValueError(
        f"{file} is cut short: it has {size} bytes, and {name} ends at {stop}. "
        "Fetch it again."
      )
  if size - stop >= alignment:
    raise ValueError(
      f"{file} has {size - stop} bytes behind the last tensor: it is not as "
      "its header says."
    )


def few(names: Iterable[str]) -> str:
  """The first names, and how many more there are."""
  names = sorted(names)
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return ", ".join(names[:3]) + more
