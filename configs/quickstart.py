"""Llama, 3 M parameters, on the interpreter's own standard library.

    python -m train.pretrain --config=configs/quickstart.py --workdir=runs/quick
Arguments: `--config=configs/quickstart.py:steps=50` stops earlier.
"""

from configs import common


def get_config(arg: str = ""):
  """The page."""
  arg = common.parse_arg(arg, steps=300)
  config = common.base()
  config.model = common.preset("llama", "3m", dtype="bfloat16")
  config.tokenizer = dict(kind="sentencepiece_bpe", vocab_size=4096)
  config.data = dict(sources=("stdlib",), heldout_fraction=0.02)
  config.batch = dict(size=16, length=256)
  config.objective = dict(z_loss=0.0)
  config.optim = dict(name="muon", lr=0.02, weight_decay=0.01)
  config.schedule = dict(name="wsd", warmup_steps=arg.steps // 20)
  config.train = dict(steps=arg.steps, log_every_steps=20, eval_every_steps=100)
  config.checkpoint = dict(every_steps=100)
  config.eval = dict(
    prompts=("def ", "import "), final=("perplexity", "compression", "python")
  )
  config.generate = dict(max_tokens=64, temperature=0.7, top_p=0.95)
  return config
