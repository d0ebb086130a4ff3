"""What was read of a source: how far, what was bad of it, and when to stop.

A source may have bad places up to a share, `data.max_bad_fraction`: the bad
documents' share of its documents, plus the damaged files' share of its bytes. A
file counts as damaged with all of its bytes, however few were lost, since
nobody can tell what was in the rest.
"""

import collections
import math
import time
from collections.abc import Callable
from typing import Any

from absl import logging

from data import sources
from data.sources import EMPTY_FILE, Bad, Document

REPORT_SECONDS = 5
# Bytes to have read before the share of bad documents is foretold: with less,
# a few bad lines at the beginning would stop what is sound on the whole.
FORETELL_BYTES = 64 << 20
N_SHOWN = 3  # bad places in the message


class Quarantine:
  """Counts one source's documents and bad places, and lists the latter."""

  def __init__(
    self,
    source: str,
    max_bad_fraction: float | int,
    listing: Callable[[dict[str, Any]], None] = lambda entry: None,
    title: str = "",
  ):
    self._source, self._title = source, title or source
    self._limit, self._listing = max_bad_fraction, listing
    self._total_bytes = max(sources.size_bytes(source), 1)
    self._read_bytes = 0
    self._started = self._reported = time.monotonic()
    self.n_documents = 0
    self.kinds: collections.Counter[str] = collections.Counter()
    self.lost_bytes = 0
    self._first: list[str] = []

  def state(self) -> dict[str, Any]:
    """What was counted, as plain JSON."""
    return {
      "n_documents": self.n_documents,
      "kinds": dict(sorted(self.kinds.items())),
      "lost_bytes": self.lost_bytes,
      "first": self._first,
    }

  def restore(self, state: dict[str, Any], read_bytes: int) -> None:
    """Goes on from a state, behind so many bytes of the source."""
    self.n_documents, self.lost_bytes = (
      state["n_documents"],
      state["lost_bytes"],
    )
    self.kinds = collections.Counter(state["kinds"])
    self._first, self._read_bytes = list(state["first"]), read_bytes

  def read(self, n_bytes: int) -> None:
    """Takes note of bytes; says how far it is once in REPORT_SECONDS."""
    self._read_bytes += n_bytes
    now = time.monotonic()
    if now - self._reported < REPORT_SECONDS:
      return
    self._reported, seconds = now, now - self._started
    logging.info(
      "%s: %.0f %% read, %.1f MB/s, %.0f s left%s",
      self._title,
      100 * self._read_bytes / self._total_bytes,
      self._read_bytes / seconds / 1e6,
      seconds * max(self._total_bytes / self._read_bytes - 1, 0),
      f"; {self.bad()}" if self.n_bad else "",
    )

  def take(self, item: Document | Bad) -> None:
    """Counts what a source gave.

    Raises:
      ValueError: with it, too much is bad.
    """
    if isinstance(item, Document):
      self.n_documents += 1
      return
    self.kinds[item.kind] += 1
    self.lost_bytes += item.lost_bytes
    self._listing({"source": self._source} | item._asdict())
    if item.kind == EMPTY_FILE:
      return
    if len(self._first) < N_SHOWN:
      self._first.append(f"{item.where}: {item.reason}"[:240])
    expected = math.inf
    if self._read_bytes >= FORETELL_BYTES:
      n_read = self.n_documents + self.n_bad
      expected = n_read * max(self._total_bytes / self._read_bytes, 1)
    self._check(expected)

  def close(self) -> None:
    """Judges the whole.

    Raises:
      ValueError: too much of it is bad.
    """
    self._check(self.n_documents + self.n_bad)

  @property
  def n_bad(self) -> int:
    """Places held against the source; damaged files are weighed instead."""
    return sum(self.kinds.values()) - self.kinds[EMPTY_FILE]

  def bad(self) -> str:
    """Says how many were bad, by kind: "3 bad (2 json, 1 utf8)"."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common())
    return f"{self.kinds.total()} bad ({kinds})" if kinds else "none bad"

  def _check(self, n_expected: float | int) -> None:
    share = self.n_bad / max(n_expected, 1)
    share += self.lost_bytes / self._total_bytes
    if share <= self._limit:
      return
    lost = f", {self.lost_bytes} bytes in damaged files" * bool(self.lost_bytes)
    way_out = min(math.ceil(share * 1000) / 1000, 1.0)
    raise ValueError(
      f"data.sources: {self._source!r}: {self.bad()} beside"
      f" {self.n_documents} sound documents{lost}; more than"
      f" data.max_bad_fraction={self._limit} allows.\n"
      + "".join(f"  {line}\n" for line in self._first)
      + "Mend or leave them out; or go on without them by data.max_bad_fraction="
      f"{way_out} (each is listed in the store's quarantine.jsonl then)."
    )
