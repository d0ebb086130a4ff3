"""Llama, 3 M parameters, on the interpreter's own standard library.

    python -m train.pretrain --config=configs/quickstart.py --workdir=runs/quick

Runs on a laptop: 2 CPU cores, 4 minutes with its evaluation (`make demo`).
Expected: 1.7 held-out bits per byte, where gzip has 1.77 and xz 1.33.
Arguments: `--config=configs/quickstart.py:steps=50` stops earlier.
Muon: https://kellerjordan.github.io/posts/muon, 2502.16982.
"""

from configs import common


def get_config(arg: str = ""):
  """The page."""
  arg = common.parse_arg(arg, steps=600)
  config = common.base()
  config.model = common.preset("llama", "3m", dtype="bfloat16")
  config.tokenizer = dict(kind="sentencepiece_bpe", vocab_size=4096)
  config.data = dict(sources=("stdlib",), heldout_fraction=0.05)
  # Files are long and the batch is small: its rows take turns among 16 files.
  config.batch = dict(size=8, length=256, n_interleaved=16)
  config.optim = dict(name="muon", lr=0.005, weight_decay=0.1)
  config.schedule = dict(name="wsd", warmup_steps=arg.steps // 20)
  config.train = dict(steps=arg.steps, log_every_steps=25, eval_every_steps=300)
  config.checkpoint = dict(every_steps=300)
  config.eval = dict(
    prompts=("def ", "class "), final=("perplexity", "compression", "python")
  )
  config.generate = dict(max_tokens=128, temperature=0.7, top_p=0.95)
  return config
