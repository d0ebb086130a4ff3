"""GPT-2, 124 M parameters, on web text.

Language Models are Unsupervised Multitask Learners (2019); learning rate, batch
and decay as GPT-3 Small (arXiv 2005.14165, table 2.1). 8 H100, data parallel.
Not run on hardware; others report 2.86 nats a token on OpenWebText after 300 B
tokens (`steps=572204`).

    python -m train.pretrain --config=configs/gpt2_124m.py:source=web/ \\
      --workdir=runs/gpt2_124m

Arguments: `source` is a folder of text or JSONL, `steps` how many updates.
"""

from configs import common


def get_config(arg: str = ""):
  """See above."""
  arg = common.parse_arg(arg, source="web/", steps=19_073)  # 10 B tokens
  config = common.base()
  config.model = common.preset("gpt", "gpt2_124m")
  config.tokenizer = dict(
    kind="tokenizers_bpe", vocab_size=50_257, sample_bytes=500_000_000
  )
  config.data = dict(sources=(arg.source,), heldout_fraction=1e-4)
  config.batch = dict(size=512, length=1024)  # 0.5 M tokens
  config.optim = dict(name="adamw", lr=6e-4, weight_decay=0.1, clip=1.0)
  config.schedule = dict(name="cosine", warmup_steps=715, floor=0.1)
  config.mesh = dict(data=-1, rules="dp")
  config.train = dict(steps=arg.steps, n_micro=8, eval_every_steps=1000)
  config.checkpoint = dict(every_steps=1000)
  return config
