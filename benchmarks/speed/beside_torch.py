"""Our training step and the one that one would write in torch, in turns.

The same Llama is trained by `train.core.step`, as the loop compiles it, and by
plain torch: fused attention, cross-entropy of all logits at once, fused AdamW.
Both start from the same weights, read the same batch and keep fp32 weights; the
losses of the first steps must agree. In bf16 torch runs all the ways that a
case names, its weights cast once a step, under autocast, or compiled, and the
fastest one counts. Needs the extra `parity`.
"""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from data.batch import Batch
from models import families, flops, llama
from models.layers.stack import unstack
from sharding import mesh, rules
from train.core import hardware, loop, optim, schedule, state, step
from train.objectives import lm

STEPS = 3  # in a turn
OPTIM = optim.AdamW(lr=1e-3)
# Of the first losses: rounding of logits, and in bf16 of everything.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}

Train = Callable[[], float]  # makes one step, returns its mean loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """What is trained, and by which kinds of torch."""

  model: llama.Config
  rows: int
  length: int
  device: str  # torch's name of it: cpu, cuda
  peers: tuple[str, ...]  # cast, autocast, compiled
  rounds: int = 7


def text(vocab_size: int, rows: int, length: int) -> Batch:
  """Random tokens: one document a row."""
  shape = rows, length + 1
  ids = np.random.default_rng(0).integers(0, vocab_size, shape, np.int32)
  ones = np.ones((rows, length), np.int32)
  return Batch(
    tokens=ids[:, :-1],
    targets=ids[:, 1:],
    weights=ones.astype(np.float32),
    segment_ids=ones,
    positions=ones.cumsum(1, dtype=np.int32) - 1,
  )


def ours(case: Case, batch: Batch) -> tuple[Train, Any]:
  """The step as train.pretrain compiles it, and the weights it starts from."""
  model = case.model
  layout = rules.make(mesh.make(mesh.Config()), "dp")
  factor = schedule.make(schedule.Constant(), 1)
  optimizer = optim.make(OPTIM, factor, families.axes(model))
  now = state.init(model, optimizer, layout, seed=0)
  start = jax.device_get(now.params)
  batch = jax.device_put(batch, layout.batch)
  objective = lm.make(lm.Config(), model)
  update, seconds = loop.compile_step(
    step.make(objective, optimizer), now, batch, layout
  )
  print(f"{model.dtype}: compiled in {seconds:.1f} s")

  def train() -> float:
    nonlocal now
    now, metrics, _ = jax.block_until_ready(update(now, batch))
    return loop.divide([metrics])["loss"]

  return train, start


def in_torch_layout(c: llama.Config, params: Any) -> Any:
  """Layer by layer, with matrices [outputs, inputs] as F.linear takes them."""

  def turn(path, x):
    name = path[-1].key
    if name in "qkv":
      x = x.reshape(c.d_model, -1).T
    elif name in ("o", "gate", "up", "down"):
      x = x.reshape(-1, x.shape[-1]).T
    return np.ascontiguousarray(x)

  if c.scanned:
    params = {**params, "stack": unstack(params["stack"])}
  return jax.tree.map_with_path(turn, params)


def plain_torch(case: Case, batch: Batch, start: Any, way: str) -> Train:
  """The same model, loss and optimizer in plain torch, one of `case.peers`."""
  import torch
  from torch.nn import functional as F

  c, device = case.model, case.device
  dtype = getattr(torch, c.dtype)
  ids = batch.tokens, batch.targets
  tokens, targets = (torch.tensor(x, device=device).long() for x in ids)
  frequency = c.rope_theta ** (-torch.arange(0, c.d_head, 2) / c.d_head)
  phase = torch.outer(torch.arange(case.length), frequency)[:, None].to(device)
  cos, sin = phase.cos().to(dtype), phase.sin().to(dtype)

  def rotate(x):
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)

  def norm(x, scale):
    return F.rms_norm(x, (c.d_model,), scale, c.norm_epsilon)

  def block(x, attention, attention_norm, mlp, mlp_norm):
    h = norm(x, attention_norm["scale"])
    q, k, v = (
      F.linear(h, attention[name]).view(case.rows, case.length, -1, c.d_head)
      for name in "qkv"
    )
    q, k, v = (y.transpose(1, 2) for y in (rotate(q), rotate(k), v))
    h = F.scaled_dot_product_attention(
      q, k, v, is_causal=True, enable_gqa=c.n_kv_heads < c.n_heads
    )
    h = h.transpose(1, 2).reshape(x.shape)
    x = x + F.linear(h, attention["o"])
    h = norm(x, mlp_norm["scale"])
    h = F.silu(F.linear(h, mlp["gate"])) * F.linear(h, mlp["up"])
    return x + F.linear(h, mlp["down"])

  def loss_of(params):
    table = params["embed"]["table"]
    x = F.embedding(tokens, table)
    for i in range(c.n_layers):
      x = block(x, **params["stack"][f"layer_{i}"])
    head = params["head"]["table"] if "head" in params else table
    logits = F.linear(norm(x, params["norm"]["scale"]), head).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

  params = jax.tree.map(
    lambda x: torch.tensor(x, device=device).requires_grad_(),
    in_torch_layout(c, start),
  )
  leaves = jax.tree.leaves(params)
  is_table = lambda x: len(x) == c.vocab_size  # noqa: E731
  matrices = [x for x in leaves if x.ndim == 2 and not is_table(x)]
  others = [x for x in leaves if x.ndim == 1 or is_table(x)]
  optimizer = torch.optim.AdamW(
    [dict(params=matrices), dict(params=others, weight_decay=0.0)],
    lr=OPTIM.lr,
    betas=(OPTIM.b1, OPTIM.b2),
    eps=OPTIM.eps,
    weight_decay=OPTIM.weight_decay,
    fused=True,
  )

  def forward() -> torch.Tensor:
    if way == "cast" or dtype is torch.float32:
      return loss_of(jax.tree.map(lambda x: x.to(dtype), params))
    with torch.autocast(device, dtype):
      return loss_of(params)

  if way == "compiled":
    forward = torch.compile(forward)

  def train() -> float:
    loss = forward()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(leaves, OPTIM.clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()

  return train


def measure(case: Case) -> dict[str, float]:
  """Median tokens per second of all, in turns, and what they mean."""
  batch = text(case.model.vocab_size, case.rows, case.length)
  own, start = ours(case, batch)
  trains = {"ours": own}
  for way in case.peers:
    trains[f"torch_{way}"] = plain_torch(case, batch, start, way)
  del start
  gc.collect()
  losses = {n: [train() for _ in range(STEPS)] for n, train in trains.items()}
  dtype = case.model.dtype
  for name in trains:
    np.testing.assert_allclose(
      losses[name], losses["ours"], rtol=0, atol=TOLERANCE[dtype], err_msg=name
    )
  seconds = {name: [] for name in trains}
  for _ in range(case.rounds):
    for name, train in trains.items():
      train()  # meanwhile the threads of the other one come to rest
      for _ in range(STEPS):
        started = time.perf_counter()
        train()
        seconds[name].append(time.perf_counter() - started)
  n_tokens = case.rows * case.length
  rates = {n: n_tokens / statistics.median(s) for n, s in seconds.items()}
  best = max(rate for name, rate in rates.items() if name != "ours")
  peak = hardware.measure_matmul(dtype, 2048 if case.device == "cpu" else 8192)
  used = rates["ours"] * flops.train_per_token(case.model, case.length)
  first = losses[f"torch_{case.peers[0]}"][0]
  return {
    **{f"{name}_tokens_per_second": round(r) for name, r in rates.items()},
    "ratio": round(rates["ours"] / best, 3),
    "loss_difference": round(abs(losses["ours"][0] - first), 6),
    "matmul_gflops": round(peak / 1e9),
    "share_of_matmul": round(used / peak, 3),
  }
