"""Where a run comes from: WORKDIR/lineage.jsonl, a line for each of its lives.

A checkpoint's card says the same of the process that wrote it; this also says
which page and which text it was, and what was set.
"""

import hashlib
import importlib.metadata
import json
import socket
import sys
import time
from typing import Any

import jax
from absl import flags
from etils import epath

from configs import door, fields
from data import store
from models import base, card, durable

FILE = "lineage.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def record(
  workdir: epath.Path,
  config: door.Config,
  opened: store.Store,
  parent: base.Parent | None,
  step: int,
) -> None:
  """Adds a life, by the first host; one from the start forgets those before.

  Args:
    workdir: of the run.
    config: resolved.
    opened: the store that it reads.
    parent: the checkpoint that the run began from.
    step: that this life begins at.
  """
  if jax.process_index():
    return
  lines = [
    *(read(workdir) if step else ()),
    _life(config, opened, parent, step),
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  durable.write_text(workdir / FILE, text)


def read(workdir: epath.Path) -> list[dict[str, Any]]:
  """The lives so far, oldest first."""
  path = workdir / FILE
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def _life(
  config: door.Config,
  opened: store.Store,
  parent: base.Parent | None,
  step: int,
) -> dict[str, Any]:
  path, sha256 = parent or (None, None)
  return {
    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    "from_step": step,
    "command": " ".join(sys.orig_argv),
    "page": flags.FLAGS["config"].value,
    "overrides": door.split_overrides(sys.argv[1:])[1],
    "settings": _chosen(config),
    "parent": path,
    "parent_sha256": sha256,
    "data": str(opened.folder),
    "data_sha256": _fingerprint(opened),
    "tokenizer_sha256": opened.tokenizer.fingerprint,
    "git": card.revision(),
    "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    "n_hosts": jax.process_count(),
    "host": socket.gethostname(),
    "versions": {
      "python": ".".join(map(str, sys.version_info[:3])),
      **{name: importlib.metadata.version(name) for name in _PACKAGES},
    },
  }


def _chosen(config: door.Config) -> dict[str, Any]:
  """What is not as the dataclasses have it, by dotted key."""
  found = {}
  for section, value in config.sections.items():
    if section in config.names:
      found[f"{section}.name"] = config.names[section]
    for name, own in fields.chosen(value).items():
      found[f"{section}.{name}"] = own
  return found


def _fingerprint(opened: store.Store) -> str:
  """SHA-256 of what the shards of all sources hold."""
  corpora = [*opened.train, *opened.heldout]
  parts = "".join(corpus.fingerprint for corpus in corpora)
  return hashlib.sha256(parts.encode()).hexdigest()
