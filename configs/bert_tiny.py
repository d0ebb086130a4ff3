"""BERT, 1 M parameters, on the interpreter's own standard library.

    python -m train.pretrain --config=configs/bert_tiny.py --workdir=runs/bert

Runs on a laptop: 2 CPU cores, 3 minutes.
Expected: a loss of 5.7 on hidden words, 8.4 at the start; 6.1 on held-out files.
Arguments: `--config=configs/bert_tiny.py:steps=50` stops earlier;
`:pairs=True` also asks whether two texts belong together.
BERT: 1810.04805, RoBERTa: 1907.11692.
"""

from configs import common


def get_config(arg: str = ""):
  """The page."""
  arg = common.parse_arg(arg, steps=400, pairs=False)
  config = common.base()
  kinds = ("words", "texts") if arg.pairs else ("words",)
  config.model = common.preset(
    "bert", "1m", heads=dict(kinds=kinds), dtype="float32"
  )
  config.tokenizer = dict(kind="sentencepiece_bpe", vocab_size=4096)
  config.data = dict(sources=("stdlib",), heldout_fraction=0.02)
  config.batch = dict(
    size=16,
    length=128,
    n_interleaved=16,
    packing="pairs" if arg.pairs else "segments",
  )
  config.objective = dict(
    name="mlm",
    mask_id=4096,  # behind the tokenizer's
    whole_words=True,
    pair_weight=20.0 if arg.pairs else 0.0,
  )
  config.optim = dict(name="adamw", lr=1e-3, weight_decay=0.01, clip=1.0)
  config.schedule = dict(name="wsd", warmup_steps=arg.steps // 10)
  config.train = dict(steps=arg.steps, log_every_steps=25)
  config.eval = dict(during=(), final=("objective",))
  return config
