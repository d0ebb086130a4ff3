"""A scaling law on a laptop: four sizes of Llama, three computes, real text.

    python -m train.sweep --config=configs/sweeps/micro.py --workdir=runs/micro
    python -m research.scaling.fit --points=runs/micro/points.csv --picture=runs/micro/law.png

Twelve runs of 40 to 390 thousand parameters on the interpreter's own standard library.
Argument: `:scale=0.1` makes every run a tenth as long.

    python -m train.search --config=configs/sweeps/micro.py:steps=200 --workdir=runs/search --trials=12

searches the learning rate and its kin of one size instead; Hyperband (1603.06560)
ends what falls behind. Arguments: width, and steps of every run.
Learning rates are those of width 64, scaled by muP (2203.03466).
"""

from configs import common

TOKENS_PER_STEP = 4 * 128
N_LAYERS, D_HEAD, VOCAB = 3, 16, 1024
WIDTHS = (16, 32, 48, 80)
BUDGETS = (2e11, 6e11, 2e12)  # FLOPs of a run


def get_config(arg: str = ""):
  """The page: what all runs have in common."""
  arg = _read(arg)
  config = common.base()
  config.model = dict(
    name="llama",
    vocab_size=VOCAB,
    n_layers=N_LAYERS,
    d_head=D_HEAD,
    max_length=128,
    tied=False,  # muP: the table and the head ask for different steps
    dtype="float32",
    **sizes(arg.width),
  )
  config.tokenizer = dict(kind="sentencepiece_bpe", vocab_size=VOCAB)
  config.data = dict(sources=("stdlib",), heldout_fraction=0.02)
  # Rows take turns among many files: with few, all runs met a stretch of tables
  # (encodings/*.py) at the same token, and ended within it or behind it.
  config.batch = dict(size=4, length=128, n_interleaved=32)
  config.optim = dict(name="adamw", lr=6e-3, weight_decay=0.1, mup_width=64)
  config.schedule = dict(name="cosine")
  config.train = dict(
    steps=arg.steps,
    log_every_steps=100,
    eval_every_steps=max(1, arg.steps // 5),
  )
  config.checkpoint = dict(every_steps=1000, keep_last=1)
  config.eval = dict(during=("perplexity",), final=("perplexity",))
  return config


def sizes(width: int) -> dict[str, int]:
  """A model of a width."""
  n_heads = width // D_HEAD
  return dict(
    d_model=width, n_heads=n_heads, n_kv_heads=n_heads, d_ff=8 * width // 3
  )


def n_params(width: int) -> int:
  """Of such a model."""
  d_ff = sizes(width)["d_ff"]
  block = 4 * width**2 + 3 * width * d_ff + 2 * width
  return N_LAYERS * block + width + 2 * VOCAB * width


def get_sweep(arg: str = ""):
  """Every budget on every size."""
  arg = _read(arg)
  models = [
    (n_params(w), {f"model.{k}": v for k, v in sizes(w).items()})
    for w in WIDTHS
  ]
  budgets = [arg.scale * budget for budget in BUDGETS]
  rows = common.isoflop(budgets, models, TOKENS_PER_STEP)
  return [
    {
      **row,
      "schedule.warmup_steps": row["train.steps"] // 10,
      "train.eval_every_steps": 0,
    }
    for row in rows
  ]


def get_search(arg: str = ""):
  """What is drawn, and by which figure it is judged."""
  _read(arg)
  return dict(
    laws={
      "optim.lr": ("log", 3e-4, 3e-2),
      "optim.weight_decay": ("log", 1e-3, 1.0),
      "optim.b2": (0.95, 0.98, 0.99, 0.999),
    },
    metric="heldout_loss",
    pruned=True,
  )


def _read(arg: str):
  return common.parse_arg(arg, scale=1.0, width=80, steps=200)
