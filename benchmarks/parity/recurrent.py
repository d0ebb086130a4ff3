"""Makes tests/golden/recurrent.npz: torch.nn's RNN, LSTM and GRU beside ours.

    python -m benchmarks.parity.recurrent

Two layers between an embedding and a tied head, with the weights and the packed
batch of benchmarks/parity/cases.py; torch reads every text of a row alone.
"""

import pathlib

import numpy as np
import torch

from benchmarks.parity import cases
from models import rnn
from models.layers import recurrent

STORED = pathlib.Path("tests/golden/recurrent.npz")
_THEIRS = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


def config(cell: str) -> rnn.Config:
  """A tiny model of one kind of cell."""
  return rnn.Config(
    vocab_size=48,
    cell=cell,
    d_model=12,
    n_layers=2,
    max_length=16,
    dtype="float32",
  )


def run(cell: str) -> tuple[np.ndarray, dict]:
  """Their logits of the batch, and the gradients as ours are laid out."""
  c, batch = config(cell), cases.batch(config(cell))
  ours = cases.params(c)
  layers = ours["stack"]["layers"]["block_0"]["recurrent"]
  module = _THEIRS[cell](c.d_model, c.d_model, c.n_layers, batch_first=True)
  for i in range(c.n_layers):
    for name, value in _theirs(cell, {k: v[i] for k, v in layers.items()}):
      getattr(module, f"{name}_l{i}").data = torch.tensor(value)
  table = torch.tensor(ours["embed"]["table"], requires_grad=True)
  logits = torch.zeros(*batch.tokens.shape, c.vocab_size)
  loss = 0.0
  for row in range(len(batch.tokens)):
    for segment in set(batch.segment_ids[row]) - {0}:
      at = torch.tensor(np.flatnonzero(batch.segment_ids[row] == segment))
      text = table[torch.tensor(batch.tokens[row])[at].long()]
      found = module(text[None])[0][0] @ table.T
      targets = torch.tensor(batch.targets[row])[at].long()
      loss += torch.nn.functional.cross_entropy(found, targets, reduction="sum")
      logits[row, at] = found.detach()
  (loss / float(batch.weights.sum())).backward()
  grads = [_ours(cell, module, i, c.d_model) for i in range(c.n_layers)]
  stacked = {k: np.stack([g[k] for g in grads]) for k in layers}
  return logits.numpy(), {
    "embed": {"table": table.grad.numpy()},
    "stack": {"layers": {"block_0": {"recurrent": stacked}}},
  }


def _theirs(cell: str, ours: dict):
  """One layer's weights as torch names them; of its two biases one is zero."""
  for name in ("input", "state"):
    w = np.float32(ours[name])
    yield _NAMES[name], w.reshape(len(w), -1).T.copy()
  bias, other = np.float32(ours["bias"]), np.zeros_like(ours["bias"])
  if recurrent.CELLS[cell].resets:
    other[2] = ours["state_bias"]
  yield "bias_ih", bias.reshape(-1)
  yield "bias_hh", np.float32(other).reshape(-1)


_NAMES = {"input": "weight_ih", "state": "weight_hh"}


def _ours(cell: str, module: torch.nn.Module, layer: int, width: int) -> dict:
  """The gradients of one layer of theirs."""

  def of(name):
    return getattr(module, f"{name}_l{layer}").grad.numpy()

  grads = {
    ours: of(theirs).T.reshape(width, -1, width)
    for ours, theirs in _NAMES.items()
  }
  grads["bias"] = of("bias_ih").reshape(-1, width)
  if recurrent.CELLS[cell].resets:
    grads["state_bias"] = of("bias_hh").reshape(-1, width)[2]
  return grads


def main() -> None:
  """Writes the file."""
  arrays = {}
  for cell in recurrent.CELLS:
    logits, gradients = run(cell)
    arrays[f"{cell}/logits"] = logits
    arrays[f"{cell}/gradients"] = cases.sketch(gradients)
  np.savez_compressed(STORED, **arrays)
  print(f"{STORED}: {len(arrays)} arrays, {STORED.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
