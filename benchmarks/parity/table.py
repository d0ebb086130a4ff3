"""The README's table of families: how far ours are from transformers'.

    python -m benchmarks.parity.table           prints it; ten minutes
    python -m benchmarks.parity.table --write   puts it into the README

A row is an architecture of theirs with all cases of it (benchmarks/parity/cases.py:
tiny random models, packed rows with padding, fp32):

logits     the largest difference of any logit from theirs, in parts of the largest
gradients  the same of a gradient's sketch, in parts of its norm
cache      of the first case, reading token by token beside reading all at once
mesh       of the first case, logits and gradients on eight devices beside one
in and out whether all their configs go out and come in again
"""

import pathlib
import re
import sys
from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from benchmarks.parity import cases
from convert import catalogue
from convert.settings import Settings
from models import cache as caches
from models import decode, families

README = pathlib.Path("README.md")
LIMITS = (5e-6, 1e-5, 1e-5, 1e-5)  # what the tests allow
_BEGIN, _END = "<!-- python -m benchmarks.parity.table -->", "<!-- so far -->"
_HEAD = (
  "| their architecture | family | cases | logits | gradients | cache | mesh "
  "| in and out |"
)
_N_DEVICES = 8


class Line(NamedTuple):
  """A row, without what has to be measured."""

  theirs: str
  family: str
  n_cases: int
  converts: str


Figures = tuple[float | None, ...]  # as LIMITS; None where there is none


def lines() -> dict[Line, list[str]]:
  """The rows of all cases, and the cases of each."""
  found: dict[tuple[str, str], list[str]] = {}
  for name, config in cases.CASES.items():
    theirs = catalogue.theirs(config)["architectures"][0]
    found.setdefault((theirs, families.name(config)), []).append(name)
  return {
    Line(*key, len(names), _converts(names)): names
    for key, names in found.items()
  }


def _converts(names: list[str]) -> str:
  refused = []
  for name in names:
    config = cases.CASES[name]
    try:
      catalogue.read(Settings(catalogue.theirs(config)))
    except ValueError:
      refused.append(name)
  return f"yes; not {', '.join(refused)}" if refused else "yes"


def figures(names: list[str]) -> Figures:
  """What is measured for a row."""
  theirs = np.max([from_theirs(name) for name in names], axis=0)
  first = cases.CASES[names[0]]
  kept = cached(first) if families.is_causal(first) else None
  return *theirs.tolist(), kept, split(first)


def from_theirs(name: str) -> tuple[float, float]:
  """How far a case is from the stored figures: logits, gradients."""
  config, stored = cases.CASES[name], cases.stored()
  logits, gradients = cases.run(config)
  real, theirs = cases.batch(config).segment_ids > 0, stored[f"{name}/logits"]
  apart = np.abs(logits[real] - theirs[real]).max() / np.abs(theirs).max()
  sketches = stored[f"{name}/gradients"]
  # Where a gradient is zero but for rounding, there is no share of it.
  norms = np.maximum(sketches[:, :1], 1e-2)
  return apart, (np.abs(cases.sketch(gradients) - sketches) / norms).max()


def cached(config: families.Config) -> float:
  """How far logits that are read token by token are from all at once."""
  params = jax.tree.map(jnp.asarray, cases.params(config))
  config, params = decode.unrolled(config, params)
  batch = cases.batch(config)
  tokens, sources = jnp.asarray(batch.tokens), None
  n_rows, length = tokens.shape
  if batch.source is not None:
    ids = jnp.asarray(batch.source.tokens)
    sources = ids, jnp.ones_like(ids, bool)

  @jax.jit
  def whole(params):
    def text(ids):
      places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
      return ids, places, jnp.ones_like(ids)

    beside = {} if sources is None else {"source": text(sources[0])}
    hidden, _ = families.build(config).apply(
      {"params": params}, *text(tokens), **beside
    )
    return families.logits(config, params, hidden)

  @jax.jit
  def in_steps(params):
    start = caches.empty(config, n_rows, length)
    one = tokens[:, :1], jnp.ones((n_rows, 1), bool)
    first, cache = decode.prefill(config, params, *one, start, sources)

    def step(cache, token):
      logits, cache = decode.step(config, params, token, cache)
      return cache, logits

    rest = jax.lax.scan(step, cache, tokens[:, 1:].T)[1]
    return jnp.concatenate([first[None], rest]).swapaxes(0, 1)

  return _apart(in_steps(params), whole(params))


def split(config: families.Config) -> float:
  """How far logits and gradients on eight devices are from those on one."""
  weights = cases.params(config)
  with cases.layout(config).use():
    there = cases.run(config, weights)
  here = cases.run(config, weights)
  return max(jax.tree.leaves(jax.tree.map(_apart, there, here)))


def _apart(there: jax.Array, here: jax.Array) -> float:
  largest = np.abs(np.asarray(there) - here).max()
  return float(largest / max(np.abs(here).max(), 1e-2))


def make() -> str:
  """The whole table."""
  rows = [_HEAD, "|" + "---|" * (_HEAD.count("|") - 1)]
  for line, names in lines().items():
    cells = ["no" if x is None else f"{x:.0e}" for x in figures(names)]
    rows.append(
      f"| {line.theirs} | {line.family} | {line.n_cases} | "
      f"{' | '.join(cells)} | {line.converts} |"
    )
    print(rows[-1], flush=True)
  return "\n".join(rows)


def stated() -> dict[Line, Figures]:
  """The rows of the README, and the figures that it states."""
  block = README.read_text().partition(_BEGIN)[2].partition(_END)[0]
  found = {}
  for row in re.findall(r"^\| (\w+ \|.*)\|$", block, re.M):
    theirs, family, n_cases, *cells, converts = (
      cell.strip() for cell in row.split("|")
    )
    line = Line(theirs, family, int(n_cases), converts)
    found[line] = tuple(None if x == "no" else float(x) for x in cells)
  return found


def main() -> None:
  """Prints or writes."""
  jax.config.update("jax_num_cpu_devices", _N_DEVICES)
  table = make()
  if sys.argv[1:] == ["--write"]:
    before, _, rest = README.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    README.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}")


if __name__ == "__main__":
  main()
